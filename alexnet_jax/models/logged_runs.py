"""The epochs at which the runs of 2012 changed their rates, by the names of their nets."""


def _logged(drops, conv_cut, frozen, stop, layers=("conv1",)) -> dict:
    cuts = tuple((layer, 0.1, conv_cut) for layer in layers) if conv_cut else ()
    freezes = tuple((layer, 0.0, frozen) for layer in layers)
    optim = {"schedule": "epochs", "drop_epochs": drops, "layer_rates": cuts + freezes}
    optim |= {"bias_rate": 2.0, "bias_schedule": "epochs"}
    return {"optim": optim, "noise_until_epoch": conv_cut, "num_epochs": stop}


# Epochs at which the 2012 runs changed rates, by net (source: layers/layer-params-*.cfg; fact sheet
# section 5), read as completed epochs. `optim` holds fields of OptimSpec; `noise_until_epoch` ends
# the colour noise (None: not logged); `num_epochs` is where the run was stopped. Drops are those of
# the kernels. Biases stayed at 0.02 in 145 to the end; 145-2010, 147 and 145-half ended with biases
# at 0.002 (145-half: of conv1 and conv2 alone), at an epoch that is not logged and so is left out
# here. A layer's cut and freezing take its biases along. Not logged either: 147's early cut of
# conv1, 145-half's last drop.
LOGGED_RUNS: dict[str, dict] = {
    "145-2010": _logged((23, 51, 78), conv_cut=68, frozen=72, stop=93),
    "145": _logged((25, 51, 79), conv_cut=67, frozen=72, stop=91),
    "147": _logged((23, 51, 79), conv_cut=None, frozen=79, stop=90),
    "148": _logged((22, 44, 86), conv_cut=69, frozen=73, stop=97),
    "145-half": _logged((20, 48), conv_cut=66, frozen=72, stop=96),
    "120-2012": _logged((22, 49, 81), conv_cut=66, frozen=73, stop=95, layers=("conv1", "conv2")),
}
