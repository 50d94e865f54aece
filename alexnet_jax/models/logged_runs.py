"""Lists the epochs at which the runs of 2012 changed their rates, by the names of their nets."""


def _logged(drops, conv_cut, frozen, stop, layers=("conv1",)) -> dict:
    cuts = tuple((layer, 0.1, conv_cut) for layer in layers) if conv_cut else ()
    freezes = tuple((layer, 0.0, frozen) for layer in layers)
    optim = {"schedule": "epochs", "drop_epochs": drops, "layer_rates": cuts + freezes}
    optim |= {"bias_rate": 2.0, "bias_schedule": "epochs"}
    return {"optim": optim, "noise_until_epoch": conv_cut, "num_epochs": stop}


# The epochs are those of layers/layer-params-*.cfg of computerhistory/AlexNet-Source-Code, read as
# completed epochs. `optim` holds fields of OptimSpec, `noise_until_epoch` is the end of
# the colour noise (None: not logged), and `num_epochs` is where the run was stopped. The drops are
# those of the kernels. The biases stayed at 0.02 in 145 to the end. Those of 145-2010, 147 and
# 145-half (there only of conv1 and conv2) ended at 0.002, from an epoch that is not logged and is
# therefore left out. A cut or freezing of a layer includes its biases. Also not logged are the
# early cut of conv1 in 147 and the last drop of 145-half.
LOGGED_RUNS: dict[str, dict] = {
    "145-2010": _logged((23, 51, 78), conv_cut=68, frozen=72, stop=93),
    "145": _logged((25, 51, 79), conv_cut=67, frozen=72, stop=91),
    "147": _logged((23, 51, 79), conv_cut=None, frozen=79, stop=90),
    "148": _logged((22, 44, 86), conv_cut=69, frozen=73, stop=97),
    "145-half": _logged((20, 48), conv_cut=66, frozen=72, stop=96),
    "120-2012": _logged((22, 49, 81), conv_cut=66, frozen=73, stop=95, layers=("conv1", "conv2")),
}
