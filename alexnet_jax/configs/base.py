"""Every field of a configuration, with the values of the paper. The others differ from this one."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The common base: AlexNet as the paper's text has it, on ImageNet (ILSVRC-2012)."""
    config = ConfigDict()

    config.seed = 0  # of the initial weights, the order, crops, flips and dropout
    config.batch_size = 128  # images per step over all devices (paper, section 5)
    config.num_epochs = 90  # passes over the training set (paper, section 5: "roughly 90")
    config.num_train_steps = 0  # ends the run at this step; 0: after num_epochs
    config.init_from = ""  # a run or import_weights' --out whose weights it begins with; '': none
    config.log_every_steps = 100  # steps between lines of training loss; at most an epoch
    config.eval_every_steps = 0  # steps between evaluations; 0: an epoch; -1: only at the end
    config.checkpoint_every_steps = 0  # steps between checkpoints; 0: an epoch; -1: only at the end
    config.keep_checkpoints = 3  # newest checkpoints kept, beside the best
    config.on_nonfinite = "stop"  # at a loss or gradient that isn't finite; or 'skip' that step
    config.on_save_error = "stop"  # where nothing can be saved; or 'continue' without
    config.deterministic = False  # have a GPU, too, compute the same bits in every run

    config.data = data = ConfigDict()
    data.name = "imagenet2012"  # a TFDS name, 'folder:PATH' with SPLIT/CLASS/IMAGE, or 'photos'
    data.data_dir = ""  # where TFDS sets lie; '': $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.train_split = "train"  # a split, or a TFDS expression such as 'train[:90%]'
    data.eval_split = "validation"  # the split whose error decides schedule and best checkpoint
    data.image_size = 224  # side of the crop that the net reads, in pixels (paper, section 4.1)
    data.resize_size = 0  # side of the square it is cut from; 0: image_size * 256 / 224
    data.backend = "tfdata"  # 'tfdata' streams; 'device' holds a small set in device memory
    data.crop = True  # train on random crops (paper, section 4.1); False: on the centre
    data.flip = True  # flip half of the training images left to right (paper, section 4.1)
    data.mean = "image"  # subtract the mean image under the crop ('image', the text) or its centre
    # ('image_centre', the 2012 code), the mean of each 'channel', or 'none'
    data.scale = 1.0  # factor on the mean-subtracted grey levels of 0..255; none in 2012
    data.colour_noise = "text_unit"  # 'none', 'source', 'text' or 'text_unit': see preprocess.py
    data.colour_noise_std = 0.1  # standard deviation of its draws (paper, section 4.1)
    data.colour_noise_until_epoch = placeholder(float)  # where it is switched off; None: never
    data.bad_images = "error"  # an unreadable image is an 'error', or 'skip' leaves it out

    # A field left at None takes the value of the preset `name` (see models/alexnet.py).
    config.model = model = ConfigDict()
    model.name = "alexnet"  # the preset
    model.num_classes = placeholder(int)  # None: as many as the data has
    model.towers = placeholder(int)  # 2: the two GPUs' halves; 1: no groups (section 3.5)
    model.width = placeholder(float)  # factor on the maps and units of every layer
    model.hidden_units = placeholder(int)  # of fc6 and fc7, instead of 4096 times width
    model.skip = placeholder(tuple)  # convolutions taken out, e.g. ('conv4',) (section 7)
    model.activation = placeholder(str)  # 'relu', 'tanh' or 'sigmoid' (section 3.1)
    model.pooling = placeholder(str)  # 'max' or 'avg'
    model.pool_window = placeholder(int)  # side in pixels; 3 overlaps at stride 2 (section 3.4)
    model.pool_stride = placeholder(int)  # pixels from one window to the next
    model.pool_overhang = placeholder(bool)  # the last window may run past the border
    model.lrn = placeholder(bool)  # local response normalisation (section 3.3)
    model.lrn_size = placeholder(int)  # maps in its sum
    model.lrn_alpha = placeholder(float)  # factor on its sum of squares
    model.lrn_beta = placeholder(float)  # its exponent
    model.lrn_k = placeholder(float)  # its constant
    model.lrn_joins = placeholder(bool)  # sum over both towers' maps, as Caffe does
    model.norm_size = placeholder(int)  # side of the window of normalisation within a map
    model.norm_alpha = placeholder(float)  # its factor on the sum of squares
    model.conv1_kernel = placeholder(int)  # side of conv1's filters in pixels
    model.conv1_stride = placeholder(int)  # conv1's stride in pixels
    model.conv1_padding = placeholder(tuple)  # zeros (before, after) each axis of the image
    model.dropout = placeholder(float)  # rate at which fc6 and fc7 drop units (section 4.2)
    model.inverted_dropout = placeholder(bool)  # rescale in training, not in testing
    model.kernel_init = placeholder(str)  # 'gaussian', the table's deviations, or 'he'
    model.init_scale = placeholder(float)  # factor on the initial kernels' deviation
    model.layer_init_scales = placeholder(tuple)  # (layer, factor) where a layer's differs from it
    model.bias_one = placeholder(float)  # initial bias where the paper has 1 (section 5)
    model.dtype = placeholder(str)  # of the computation; parameters are 'float32'

    config.optim = optim = ConfigDict()
    optim.optimizer = "momentum"  # the paper's rule (section 5), or 'lars' for very large batches
    optim.learning_rate = 0.01  # at the start (paper, section 5)
    optim.momentum = 0.9  # of the velocity (paper, section 5)
    optim.weight_decay = 5e-4  # on kernels, times the learning rate (paper, section 5)
    optim.bias_rate = 1.0  # factor on the biases' learning rate; 2 in the 2012 code
    optim.schedule = "plateau"  # 'constant', 'plateau', 'epochs' or 'dexp'
    optim.drop_factor = 10.0  # by which 'plateau' and 'epochs' divide the rate
    optim.drop_epochs = ()  # where 'epochs' divides it
    optim.patience_epochs = 5  # epochs without a better error after which 'plateau' divides it
    optim.min_delta = 0.0  # points by which an error must be better, for 'plateau'
    optim.max_drops = 3  # most divisions of 'plateau' (paper, section 5)
    optim.dexp_factor = 250.0  # first over last rate of 'dexp' (2012 code, net #170)
    optim.dexp_steps = 4  # equal stretches of 'dexp'
    optim.bias_schedule = "weights"  # biases follow the kernels' rate, or 'epochs': the next field
    optim.bias_drop_epochs = ()  # the biases' own drops
    optim.warmup_epochs = 0.0  # the rate rises linearly over these
    optim.layer_rates = ()  # (layer, factor, from_epoch): 0 freezes the layer
    optim.layer_decays = ()  # (layer, weight decay) where it differs
    optim.trust_coefficient = 0.001  # of 'lars'

    config.mesh = mesh = ConfigDict()
    mesh.layout = "data"  # 'data', 'towers' or 'hybrid': see parallel.py
    mesh.data = -1  # devices over which the batch is split; -1: all that mesh.model leaves
    mesh.model = 1  # devices over which the net is split

    return config
