"""Weights of other programs give the other program's logits; and what foreign files may contain."""

import importlib.util
import json
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from alexnet_jax.errors import UserError
from alexnet_jax.import_weights import import_weights
from alexnet_jax.trained.pretrained import open_pretrained
from alexnet_jax.weights import caffe, caffe_proto, pickles, torchvision
from tests import foreign, tiny

GOLDEN = Path(__file__).parent / "golden"
SIZE = 99  # of the golden records' images; their last maps are of 2 x 2 pixels


def golden(name):
    """What PyTorch computed: images uint8, logits, and weights without their prefix."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        weights = {key[2:]: arrays[key] for key in arrays if key.startswith("w/")}
        return arrays["images"], arrays["logits"], weights


def logits(directory, images):
    net = open_pretrained(directory)
    return np.asarray(jax.jit(net.model.apply)({"params": net.params}, images)[0])


def assert_close(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * abs(theirs).max())


def lines(raised):
    """The lines of the UserError."""
    return str(raised.value).splitlines()


# torchvision


def test_torchvision_safetensors(small, tmp_path):
    images, expected, weights = golden("torchvision")
    file = tmp_path / "alexnet.safetensors"
    safetensors.numpy.save_file(weights, file)
    said = import_weights("torchvision", file, tmp_path / "out")
    assert said.startswith("torchvision, ")
    assert_close(logits(tmp_path / "out", images.astype(np.float32) - 128), expected)


def test_torchvision_preprocessing(small, tmp_path):
    """Pixels in 0..1, mean and deviation of each channel, as its ImageClassification does."""
    _, _, weights = golden("torchvision")
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    (ours,) = open_pretrained(tmp_path / "out").preprocess(picture)
    start = (256 - SIZE) // 2
    crop = picture[start : start + SIZE, start : start + SIZE] / 255
    theirs = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: no .pth can be written")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_pth_of_the_real_writer(small, tmp_path, torch, dtype, wrapped):
    images, _, _ = golden("torchvision")
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    net = make_golden.seeded(make_golden.torchvision_layout(), seed=7)
    net = net.to(getattr(torch, dtype)).double()  # rounded, so that the file has these numbers
    state = {name: x.to(getattr(torch, dtype)) for name, x in net.state_dict().items()}
    if wrapped:
        state = {"epoch": 3, "state_dict": {f"module.{name}": x for name, x in state.items()}}
    else:
        state = type(net.state_dict())(state)  # an OrderedDict, as torchvision's files have
    torch.save(state, tmp_path / "alexnet.pth")
    import_weights("torchvision", tmp_path / "alexnet.pth", tmp_path / "out")
    x = torch.from_numpy(images.astype(np.float64) - 128).permute(0, 3, 1, 2)
    expected = make_golden.run_torchvision(net, x).detach().numpy()
    assert_close(logits(tmp_path / "out", images.astype(np.float32) - 128), expected)


def test_views_of_a_storage(tmp_path, torch):
    base = torch.arange(24.0)
    torch.save({"a": base[4:16].view(3, 4).T, "b": base[::5]}, tmp_path / "x.pth")
    found = torchvision.read_tensors(tmp_path / "x.pth")[""]
    np.testing.assert_array_equal(found["a"], np.arange(4.0, 16).reshape(3, 4).T)
    np.testing.assert_array_equal(found["b"], np.arange(0.0, 24, 5))


def test_what_training_programs_put_around_a_net(small, tmp_path, monkeypatch):
    images, _, weights = golden("torchvision")
    other = {name: array + 1 for name, array in weights.items()}

    def prefixed(prefix, arrays=weights):
        return {prefix + name: array for name, array in arrays.items()}

    inside = {name.replace("features.", "features.module."): x for name, x in weights.items()}
    count = {"n_averaged": np.array(5)}
    checkpoints = {
        "DataParallel": {"state_dict": inside},
        "compiled": {"": prefixed("_orig_mod.module.")},
        "compiled, nested": {"model_state_dict": prefixed("module.model._orig_mod.")},
        "Lightning": {"state_dict": prefixed("model.") | prefixed("ema_model.", other)},
        "EMA": {"": count | prefixed("module.")},
        "beside an EMA": {"model_ema": count | prefixed("module.", other), "model": weights},
        "momentum": {"optimizer.state.0": {"momentum_buffer": images}, "net": weights},
    }
    for name, places in checkpoints.items():
        monkeypatch.setattr(torchvision, "read_tensors", lambda path, places=places: places)
        found = torchvision.read(tmp_path / "x.pth")
        np.testing.assert_array_equal(found.layers[-1].bias, weights["classifier.6.bias"], name)
        both = {"Lightning": "state_dict.ema_model", "beside an EMA": "model_ema"}.get(name, "")
        assert found.note.endswith(both), name
        assert bool(found.note) == bool(both), name
    more = {"": weights | {"features.1.num_batches_tracked": np.array(3)}}
    for places in (more, {"": prefixed("model.") | {"head.weight": np.zeros(3)}}):
        monkeypatch.setattr(torchvision, "read_tensors", lambda path, places=places: places)
        with pytest.raises(UserError, match="alexnet: it has 1 that are not of it"):
            torchvision.read(tmp_path / "x.pth")


def test_a_net_beside_its_average_under_the_same_names(small, tmp_path):
    _, _, weights = golden("torchvision")
    average = {f"module.{name}": array + 1 for name, array in weights.items()}
    safetensors.numpy.save_file(weights | average, tmp_path / "x.safetensors")
    said = r"it has (\S+) twice, as \1 and as module\.\1: save one of the nets$"
    with pytest.raises(UserError, match=said) as raised:
        import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")
    assert len(lines(raised)) == 1


def test_numbers_of_types_that_numpy_lacks(tmp_path):
    head = {"features.0.weight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    text = json.dumps(head).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(2))
    with pytest.raises(UserError, match=r"tensors of float8_e4m3fn, which .* float32$") as raised:
        import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")
    assert len(lines(raised)) == 1


def test_a_damaged_compressed_pth(tmp_path):
    file = tmp_path / "x.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(range(256)) * 20)
    data = bytearray(file.read_bytes())
    start = 30 + len("archive/data.pkl")  # behind the member's header
    data[start : start + 40] = b"\xff" * 40
    file.write_bytes(data)
    with pytest.raises(UserError, match="is no whole state dict of PyTorch") as raised:
        import_weights("torchvision", file, tmp_path / "out")
    assert len(lines(raised)) == 1


class Module:
    """Pickles as PyTorch's do."""

    def __init__(self):
        self._modules = {}


def test_whole_models_and_scripts_are_named(tmp_path):
    for whole in (Module(), {"epoch": 3, "model": Module()}):
        file = pth(tmp_path / "x.pth", pickle.dumps(whole, protocol=2))
        with pytest.raises(UserError, match=r"whole pickled model: save its model\.state_dict"):
            import_weights("torchvision", file, tmp_path / "out")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(UserError, match=r"TorchScript: save torch\.jit\.load"):
        import_weights("torchvision", file, tmp_path / "out")


COMPLEX = (  # {"c": torch.zeros(2, dtype=torch.complex64)} as torch.save pickles it
    b"\x80\x02}(X\x01\0\0\0cctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n"
    b"ComplexFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89NtRu."
)


def test_what_is_no_part_of_a_net_is_passed_over(tmp_path):
    """Beside a net people save the names of its classes, say, as NumPy has them."""
    beside = {"classes": list(np.unique(["dog", "cat"])), "epoch": np.int64(3)}
    for protocol in (2, 4):
        found = pickles.load(pickle.dumps(beside, protocol=protocol))
        assert found == {"classes": [None, None], "epoch": 3}
    file = pth(tmp_path / "x.pth", COMPLEX, **{"0": bytes(16)})
    assert torchvision.read_tensors(file) == {}


def test_quantised_tensors_are_refused(small, tmp_path):
    _, _, weights = golden("torchvision")
    weights["classifier.4.weight"] = weights["classifier.4.weight"].astype(np.int8)
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"classifier\.4\.weight is of int8"):
        import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")


def test_old_pth_is_named(tmp_path, torch):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"before 1\.6.*torch\.save") as raised:
        import_weights("torchvision", tmp_path / "x.pth", tmp_path / "out")
    assert len(lines(raised)) == 1


def pth(path, pickled, **members):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            file.writestr(f"archive/data/{name}", data)
    return path


def test_tensor_beyond_its_storage(tmp_path):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    storage += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    reach = b"K\x00(K\x05K\x05t(K\x05K\x01t\x89}tR"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + reach
    data = b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s."
    file = pth(tmp_path / "x.pth", data, **{"0": np.zeros(4, "f4").tobytes()})
    with pytest.raises(UserError, match="beyond its storage"):
        torchvision.read_tensors(file)


# Caffe


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["bvlc_alexnet", "caffenet"])
def test_caffe(small, tmp_path, name, old):
    """The order of pooling and normalisation tells the two apart, whose shapes are the same."""
    images, expected, weights = golden(name)
    (tmp_path / "x.caffemodel").write_bytes(foreign.caffemodel(name, weights, old=old))
    said = import_weights("caffe", tmp_path / "x.caffemodel", tmp_path / "out")
    assert said.startswith(f"{name}, ")
    assert_close(logits(tmp_path / "out", images.astype(np.float32) - 128), expected)


def test_caffe_preprocessing(small, tmp_path):
    """BGR minus 104, 117, 123; or minus the mean image under each crop."""
    _, _, weights = golden("caffenet")
    file = tmp_path / "x.caffemodel"
    file.write_bytes(foreign.caffemodel("caffenet", weights))
    import_weights("caffe", file, tmp_path / "channels")
    picture = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    bgr = open_pretrained(tmp_path / "channels").preprocess(np.full((256, 256, 3), 130, np.uint8))
    assert bgr[0, 0, 0, ::-1].tolist() == [130 - 104, 130 - 117, 130 - 123]

    mean = np.random.default_rng(1).uniform(0, 255, (120, 120, 3)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(foreign.binaryproto(mean))
    import_weights("caffe", file, tmp_path / "image", str(tmp_path / "mean.binaryproto"))
    views = open_pretrained(tmp_path / "image").preprocess(picture, 10)
    np.testing.assert_array_equal(views[3], (picture - mean)[21:, :99])
    np.testing.assert_array_equal(views[8], (picture - mean)[21:, :99][:, ::-1])


def test_caffes_nets_without_a_mean(small, tmp_path):
    """A transformation that names no mean subtracts none; of a mean file only its name is told."""
    _, _, weights = golden("caffenet")
    file = tmp_path / "x.caffemodel"
    told = {"data": {"transform_param": {"crop_size": 99}}}
    file.write_bytes(foreign.caffemodel("caffenet", weights, told=told))
    import_weights("caffe", file, tmp_path / "none")
    assert open_pretrained(tmp_path / "none").recipe.mean.tolist() == [0, 0, 0]
    net = caffe_proto.parse("NetParameter", file.read_bytes())
    net.layer[0].transform_param.mean_file = "imagenet_mean.binaryproto"
    file.write_bytes(net.SerializeToString())
    import_weights("caffe", file, tmp_path / "file")
    assert open_pretrained(tmp_path / "file").recipe.mean.tolist() == list(caffe.MEAN)


CONVS = {  # pad, kernel, stride, group of both nets (BVLC/caffe models/*/train_val.prototxt)
    "conv1": (0, 11, 4, 1),
    "conv2": (2, 5, 1, 2),
    "conv3": (1, 3, 1, 1),
    "conv4": (1, 3, 1, 2),
    "conv5": (1, 3, 1, 2),
}


def told_in_full():
    """Each layer with the numbers that Caffe writes, those of the published net but for a few."""
    told = {}
    for name, (pad, kernel, stride, group) in CONVS.items():
        numbers = {"pad": [pad], "kernel_size": [kernel], "stride": [stride], "group": group}
        told[name] = {"convolution_param": numbers}
    told |= {f"relu{i}": {"relu_param": {"negative_slope": 0.0}} for i in range(1, 8)}
    told |= {f"pooling{i}": {"pooling_param": {"kernel_size": 3, "stride": 2}} for i in (1, 2, 5)}
    told |= {f"dropout{i}": {"dropout_param": {"dropout_ratio": 0.25}} for i in (6, 7)}
    told |= {f"lrn{i}": {"lrn_param": {"alpha": 0.5, "k": 2.0}} for i in (1, 2)}
    pixels = {"crop_size": 95, "mean_value": [103.5, 116.5, 123.5], "scale": 0.5}
    return told | {"data": {"transform_param": pixels}}


@pytest.mark.parametrize("old", [False, True])
def test_caffes_numbers_are_used(small, tmp_path, old):
    _, _, weights = golden("bvlc_alexnet")
    file = tmp_path / "x.caffemodel"
    file.write_bytes(foreign.caffemodel("bvlc_alexnet", weights, old=old, told=told_in_full()))
    import_weights("caffe", file, tmp_path / "out")
    net = open_pretrained(tmp_path / "out")
    model = net.model
    assert (model.lrn_alpha, model.lrn_k, model.dropout) == (0.5 / 5, 2.0, 0.25)
    # 95 pixels give 22 after conv1, and Caffe's pooling 11, with a last window over the border.
    maps = jax.eval_shape(model.apply, {"params": net.params}, np.zeros((1, 95, 95, 3), "f4"))[1]
    assert maps["pool1"].shape[1] == 11
    (ours,) = net.preprocess(np.full((256, 256, 3), 130, np.uint8))
    assert ours.shape == (95, 95, 3)
    assert ours[0, 0].tolist() == [(130 - 123.5) / 2, (130 - 116.5) / 2, (130 - 103.5) / 2]


WRONG = {  # what a file tells of a layer, and what is said
    "pooling5 has pooling avg, where others have max": ("pooling5", {"pooling_param": {"pool": 1}}),
    "pooling5 has pad 1": ("pooling5", {"pooling_param": {"pad": 1}}),
    "pooling1 pools by method 2": ("pooling1", {"pooling_param": {"pool": 2}}),
    "pooling2 has pool_stride 3, where": (
        *("pooling2", {"pooling_param": {"kernel_size": 3, "stride": 3}}),
    ),
    "relu3 has negative_slope 0.1": ("relu3", {"relu_param": {"negative_slope": 0.1}}),
    "lrn2 normalises WITHIN_CHANNEL": ("lrn2", {"lrn_param": {"norm_region": 1}}),
    "lrn2 has lrn_k 3.0": ("lrn2", {"lrn_param": {"k": 3.0}}),
    "lrn1 has local_size 4": ("lrn1", {"lrn_param": {"local_size": 4}}),
    r"conv1 has padding \(2, 2\)": ("conv1", {"convolution_param": {"pad": [2], "stride": [4]}}),
    "conv3 has stride 2": ("conv3", {"convolution_param": {"stride": [2], "pad": [1]}}),
    "conv4 has dilation 2": ("conv4", {"convolution_param": {"dilation": [2]}}),
    "conv4 has a group": ("conv4", {"convolution_param": {"group": 4}}),
    "conv5 has kernel 3 x 5": ("conv5", {"convolution_param": {"kernel_h": 3, "kernel_w": 5}}),
    "conv5 has 2 arrays": ("conv5", {"convolution_param": {"bias_term": False}}),
    "conv5 has a field 99": ("conv5", {"convolution_param": {"of_a_fork": 1}}),
    "dropout7 has dropout 0.1, where": ("dropout7", {"dropout_param": {"dropout_ratio": 0.1}}),
    "relu2 is of type Power": ("relu2", {"type": "Power"}),
}


def test_caffes_numbers_that_no_net_of_ours_has(small, tmp_path):
    _, _, weights = golden("bvlc_alexnet")
    file = tmp_path / "x.caffemodel"
    for said, (layer, numbers) in WRONG.items():
        told = {layer: numbers}
        file.write_bytes(foreign.caffemodel("bvlc_alexnet", weights, told=told))
        with pytest.raises(UserError, match=said) as raised:
            import_weights("caffe", file, tmp_path / "out")
        assert len(lines(raised)) == 1
        assert file.name in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_nvidias_arrays(small, tmp_path):
    _, _, weights = golden("bvlc_alexnet")
    weights = {name: array.astype(np.float16) for name, array in weights.items()}
    for raw in (False, True):
        file = tmp_path / f"{raw}.caffemodel"
        file.write_bytes(foreign.caffemodel("bvlc_alexnet", weights, raw=raw))
        import_weights("caffe", file, tmp_path / str(raw))
    ours = [open_pretrained(tmp_path / str(raw)).params for raw in (False, True)]
    jax.tree.map(np.testing.assert_array_equal, *ours)


def test_caffes_first_format_is_named(tmp_path):
    (tmp_path / "x.caffemodel").write_bytes(foreign.first_format_caffemodel())
    with pytest.raises(UserError, match="upgrade_net_proto_binary"):
        import_weights("caffe", tmp_path / "x.caffemodel", tmp_path / "out")


# cuda-convnet


@pytest.mark.parametrize("make", [foreign.net145, foreign.net145_half])
@pytest.mark.parametrize("as_list", [True, False])
def test_cuda_convnet(tmp_path, make, as_list):
    layers = make(seed=3)
    file = tmp_path / "91.1001"
    kept = layers if as_list else {layer["name"]: layer for layer in reversed(layers)}
    file.write_bytes(foreign.checkpoint(kept))
    said = import_weights("cuda_convnet", file, tmp_path / "out")
    assert said.startswith(f"{make.__name__}, ")
    images = np.random.default_rng(4).integers(-128, 128, (2, SIZE, SIZE, 3))
    expected = np.stack([foreign.run(layers, image.transpose(2, 0, 1)) for image in images])
    assert_close(logits(tmp_path / "out", images.astype(np.float32)), expected)


def test_cuda_convnet_mean_and_names(tmp_path):
    (tmp_path / "net").write_bytes(foreign.checkpoint(foreign.net145_half()))
    mean = np.random.default_rng(0).uniform(0, 255, (3, 120, 120)).astype(np.float32)
    names = [f"class number {i}" for i in range(10)]
    meta = {"data_mean": mean.reshape(-1, 1), "label_names": names}
    (tmp_path / "batches.meta").write_bytes(foreign.python2_pickle(meta))
    import_weights("cuda_convnet", tmp_path / "net", tmp_path / "a", str(tmp_path / "batches.meta"))
    net = open_pretrained(tmp_path / "a")
    assert net.class_names == tuple(names)
    picture = np.full((120, 120, 3), 100, np.uint8)
    centre = mean.transpose(1, 2, 0)[10:109, 10:109]
    for view in net.preprocess(picture, views=10):  # the centre of it, wherever the crop lay
        np.testing.assert_array_equal(view, 100 - centre)


@pytest.mark.parametrize(
    ("layer", "field", "value", "said"),
    [
        ("conv2a", "stride", [2], r"conv2a has stride 2, and net145_half 1"),
        ("conv4a", "padding", [-2], r"conv4a has padding \(2, 0\), and net145_half \(1, 1\)"),
        ("rnorm1a", "blocked", 1, "rnorm1a has blocked 1"),
        ("cnorm2a", "pow", 0.5, "cnorm2a has pow 0.5"),
        ("pool2a", "start", -1, "pool2a has start -1"),
        ("hs2a", "enable", 0, "hs2a has enable 0"),
    ],
)
def test_numbers_of_cuda_convnet_that_no_net_of_ours_has(tmp_path, layer, field, value, said):
    layers = foreign.net145_half()
    next(each for each in layers if each["name"] == layer)[field] = value
    (tmp_path / "net").write_bytes(foreign.checkpoint(layers))
    with pytest.raises(UserError, match=said) as raised:
        import_weights("cuda_convnet", tmp_path / "net", tmp_path / "out")
    assert len(lines(raised)) == 1


def test_a_layer_of_unknown_kind_is_listed(tmp_path):
    layers = foreign.net145_half()
    next(layer for layer in layers if layer["name"] == "rnorm1a")["type"] = "cnorm"
    (tmp_path / "net").write_bytes(foreign.checkpoint(layers))
    with pytest.raises(UserError, match="cnorm, pool, act") as raised:
        import_weights("cuda_convnet", tmp_path / "net", tmp_path / "out")
    assert "net145_half, as wide as its first layer" in str(raised.value)


# What is written


def test_weights_that_are_no_numbers(small, tmp_path):
    _, _, weights = golden("torchvision")
    weights = {name: array.copy() for name, array in weights.items()}
    weights["features.3.weight"][0, 0, 0, :2] = np.nan, np.inf
    weights["classifier.6.bias"][1] = -np.inf
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    said = r"x\.safetensors.*\(2 in the kernel of conv2, 1 in the bias of fc8\)"
    with pytest.raises(UserError, match=said) as raised:
        import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")
    assert len(lines(raised)) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.485, 0.456, 0.406], r"of 0\.406 to 0\.485: .* multiply one of 0\.\.1 by 255$"),
        ([123, np.nan, 104], "NaN or infinite"),
        ([123, -117, 104], r"of -117 to 123: a mean is in grey levels of 0\.\.255$"),
        ([123, 117, 1040], "of 117 to 1040"),
        ([0, 0, 0], None),
        ([0, 0.5, 104], None),
    ],
)
def test_means_that_no_pictures_have(small, tmp_path, values, said):
    _, _, weights = golden("caffenet")
    net, mean, out = (tmp_path / name for name in ("x.caffemodel", "mean.npy", "out"))
    net.write_bytes(foreign.caffemodel("caffenet", weights))
    np.save(mean, np.float32(values))
    if said is None:
        import_weights("caffe", net, out, str(mean))
        assert open_pretrained(out).recipe.mean.tolist() == values
        return
    with pytest.raises(UserError, match=said) as raised:
        import_weights("caffe", net, out, str(mean))
    assert len(lines(raised)) == 1
    assert "mean.npy" in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"preprocess": {"mean": [0.5, 0.5, 0.5]}}, "multiply one of 0..1 by 255"),
        ({"preprocess": {"mean": 127.5}}, "mean has the shape [], not [3]"),
        ({"preprocess": {"scale": [1, 1]}}, "scale has the shape [2], not [3]"),
        ({"preprocess": {"resize_size": 64}}, "image_size 99 must be from 1 to resize_size"),
        ({"class_names": ["a", "b"] * 1000}, "names 2000 classes, and the net has"),
    ],
)
def test_an_edited_description_is_held_to_its_net(small, tmp_path, edit, said):
    """No flag of import_weights gives a scale or classes, so that people write them there."""
    _, _, weights = golden("torchvision")
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")
    path = tmp_path / "out" / "weights.json"
    told = json.loads(path.read_text())
    told["preprocess"] |= edit.pop("preprocess", {})
    path.write_text(json.dumps(told | edit))
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        open_pretrained(tmp_path / "out")
    assert "weights.json" in str(raised.value)
    assert len(lines(raised)) == 1


def test_outputs_that_are_no_classes_are_said(small, tmp_path):
    """A sigmoid of one output, and losses that make no softmax, give no shares to print."""
    _, _, weights = golden("torchvision")
    for kind, shape in (("weight", (1, -1)), ("bias", (1,))):
        name = f"classifier.6.{kind}"
        weights[name] = np.ascontiguousarray(weights[name][:1].reshape(shape))
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="the net has one output"):
        import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "one")
    assert not (tmp_path / "one").exists()

    _, _, weights = golden("caffenet")
    file = tmp_path / "x.caffemodel"
    file.write_bytes(foreign.caffemodel("caffenet", weights, loss="SigmoidCrossEntropyLoss"))
    assert "it was trained by SigmoidCrossEntropyLoss" in import_weights(
        "caffe", file, tmp_path / "c"
    )


def test_the_mean_of_other_classes(tmp_path):
    (tmp_path / "net").write_bytes(foreign.checkpoint(foreign.net145_half()))
    mean = np.full((3 * 120 * 120, 1), 100, np.float32)
    meta = {"data_mean": mean, "label_names": [f"class {i}" for i in range(1000)]}
    (tmp_path / "batches.meta").write_bytes(foreign.python2_pickle(meta))
    with pytest.raises(UserError, match="names 1000 classes, and the net has 10") as raised:
        import_weights(
            "cuda_convnet", tmp_path / "net", tmp_path / "out", str(tmp_path / "batches.meta")
        )
    assert len(lines(raised)) == 1


def test_what_is_written(small, tmp_path):
    _, _, weights = golden("torchvision")
    file = tmp_path / "weights of mine.safetensors"
    safetensors.numpy.save_file(weights, file)
    out = tmp_path / "out"
    import_weights("torchvision", file, out)
    assert sorted(each.name for each in out.iterdir()) == ["weights.json", "weights.safetensors"]
    told = json.loads((out / "weights.json").read_text())
    assert told["model"]["name"] == "torchvision"
    assert told["source"]["file"] == file.name
    assert told["preprocess"]["channel_order"] == "rgb"
    import_weights("torchvision", file, out)  # once more is no harm

    safetensors.numpy.save_file(weights | {"features.0.bias": weights["features.0.bias"] + 1}, file)
    before = (out / "weights.json").read_bytes()
    with pytest.raises(UserError, match="something else"):
        import_weights("torchvision", file, out)
    assert (out / "weights.json").read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="something else"):
        import_weights("torchvision", file, tmp_path / "notes")


def test_weights_that_were_changed_or_cut_off(small, tmp_path):
    _, _, weights = golden("torchvision")
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")
    file = tmp_path / "out" / "weights.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"weights\.safetensors") as raised:
            open_pretrained(tmp_path / "out")
        assert len(lines(raised)) == 1


def test_the_command(tmp_path):
    file = tmp_path / "91.1001"
    file.write_bytes(foreign.checkpoint(foreign.net145_half()))
    options = ("--from=cuda_convnet", f"--out={tmp_path / 'out'}")
    run = tiny.command("alexnet_jax.import_weights", file, *options)
    assert run.returncode == 0, run.stderr
    assert "net145_half" in run.stdout
    assert "mean: 127.3, 119.7, 104.9 (RGB), ImageNet's channel means; --mean=FILE" in run.stdout
    run = tiny.command("alexnet_jax.import_weights", tmp_path / "91.1002", *options)
    assert run.returncode == 1
    assert run.stderr == f"error: no file '{tmp_path / '91.1002'}'; did you mean '91.1001'?\n"


# Files of other nets, and of nobody's


def files(tmp_path):
    """A file of each format, by program."""
    _, _, weights = golden("torchvision")
    _, _, caffe_weights = golden("caffenet")
    state = safetensors.numpy.save(weights)
    checkpoint = foreign.checkpoint(foreign.net145_half())
    made = {
        "torchvision": ("x.safetensors", state),
        "caffe": ("x.caffemodel", foreign.caffemodel("caffenet", caffe_weights)),
        "cuda_convnet": ("91.1001", checkpoint),
    }
    for name, data in made.values():
        (tmp_path / name).write_bytes(data)
    return {program: tmp_path / name for program, (name, _) in made.items()}


def test_files_of_another_program(small, tmp_path):
    made = files(tmp_path)
    for program in made:
        for other, file in made.items():
            if other != program:
                with pytest.raises(UserError, match=file.name) as raised:
                    import_weights(program, file, tmp_path / "out")
                assert len(lines(raised)) == 1
    assert not (tmp_path / "out").exists()


def test_another_net_shows_both_lists(small, tmp_path):
    _, _, weights = golden("caffenet")
    del weights["conv4.weight"], weights["conv4.bias"]
    weights["conv4.weight"], weights["conv4.bias"] = (
        np.zeros((24, 8, 3, 3), "f4"),
        np.zeros(24, "f4"),
    )
    (tmp_path / "x.caffemodel").write_bytes(foreign.caffemodel("caffenet", weights))
    with pytest.raises(UserError) as raised:
        import_weights("caffe", tmp_path / "x.caffemodel", tmp_path / "out")
    text = str(raised.value)
    assert "x.caffemodel" in lines(raised)[0]
    assert "3 x 3 x 8 x 24" in text  # the file's
    assert "3 x 3 x 12 x 24" in text  # the net's

    _, _, weights = golden("torchvision")
    safetensors.numpy.save_file({"features.0.weight": weights["features.0.weight"]}, tmp_path / "y")
    with pytest.raises(UserError, match="lacks 15 of its 16 tensors") as raised:
        import_weights("torchvision", tmp_path / "y", tmp_path / "out")
    assert any("features.0.weight 4x3x11x11" in line for line in lines(raised))
    assert any("classifier.6.bias" in line for line in lines(raised))


def test_cut_off_anywhere(small, tmp_path):
    rng = np.random.default_rng(0)
    for program, file in files(tmp_path).items():
        whole = file.read_bytes()
        for length in [0, 1, 7, 9, 100, *rng.integers(0, len(whole), 8), len(whole) - 1]:
            file.write_bytes(whole[:length])
            with pytest.raises(UserError, match=file.name):
                import_weights(program, file, tmp_path / "out")


def test_flipped_bytes_are_an_error_or_other_numbers(small, tmp_path):
    rng = np.random.default_rng(1)
    for program, file in files(tmp_path).items():
        whole = file.read_bytes()
        for turn in range(15):
            damaged = bytearray(whole)
            for place in rng.integers(0, 400 if turn % 2 else len(whole), 5):
                damaged[place] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                import_weights(program, file, tmp_path / f"{program}{turn}")
            except UserError as error:
                assert file.name in str(error)  # noqa: PT017


class Evil:
    """Unpickles by running a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_pickle_runs(tmp_path):
    trace = tmp_path / "it ran"
    evil = pickle.dumps({"model_state": {"layers": []}, "op": Evil(trace)}, protocol=2)
    (tmp_path / "net").write_bytes(evil)
    with pytest.raises(UserError, match="no layer of it has weights"):
        import_weights("cuda_convnet", tmp_path / "net", tmp_path / "out")
    file = pth(tmp_path / "x.pth", pickle.dumps({"a": Evil(trace)}, protocol=2))
    with pytest.raises(UserError, match="16 of its 16 tensors"):
        import_weights("torchvision", file, tmp_path / "out")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("__builtin__", "getattr"), ("numpy", "load"), ("os", "system")],
)
def test_names_in_a_pickle_mean_nothing(module, name):
    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(X\x03\x00\x00\x001+1tR."
    found = pickles.load(data)
    assert isinstance(found, pickles.Record)
    assert found.args == ("1+1",)


def test_a_pickle_of_python_3():
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    things = {"a": np.float64(1.5), "b": array, "c": OrderedDict(x=1), "d": {1, 2}}
    found = pickles.load(pickle.dumps(things, protocol=2))
    assert found["a"] == 1.5
    np.testing.assert_array_equal(np.asarray(found["b"]), array)
    assert (found["c"], found["d"]) == ({"x": 1}, {1, 2})


def test_a_pickle_leaves_nothing_behind_in_the_reader():
    """BUILD sets attributes on whatever a pickle names."""
    named = b"\x80\x02c_codecs\nencode\n"
    assert pickles.load(named + b"}X\x03\x00\x00\x00eggK\x01sb.").egg == 1
    assert not hasattr(pickles.load(named + b"."), "egg")


def test_pictures_of_pil_and_bytes(small, tmp_path):
    """They are what NumPy's picture is, without loss in between."""
    _, _, weights = golden("torchvision")
    safetensors.numpy.save_file(weights, tmp_path / "x.safetensors")
    import_weights("torchvision", tmp_path / "x.safetensors", tmp_path / "out")
    preprocess = open_pretrained(tmp_path / "out").preprocess
    picture = np.random.default_rng(0).integers(0, 256, (150, 111, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    expected = preprocess(picture)
    assert expected.shape == (1, SIZE, SIZE, 3)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(preprocess(Image.fromarray(picture)), expected)
    np.testing.assert_array_equal(preprocess((tmp_path / "x.png").read_bytes()), expected)
