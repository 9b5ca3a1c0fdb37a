"""The paper's own numbers: Tables 3 and 4 of Xiao, Zhang and Peng (2021), as printed."""

COLUMNS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "lbfgs": "L-BFGS",
    "pgd": "PGD",
    "gaussian_noise": "Gaussian",
    "impulse_noise": "impulse",
    "glass_blur": "glass blur",
    "contrast": "contrast",
    "fgsm-transfer": "FGSM, black box",
    "lbfgs-transfer": "L-BFGS, black box",
}
"""Conditions of an evaluation in the order of the tables' columns, with their headings."""

_PRINTED = {
    "table3": {
        "MLP, ReLU": (0.948, 0.149, 0.255, 0.105, 0.935, 0.934, 0.879, 0.598, 0.314, 0.690),
        "MLP, Sigmoid": (0.936, 0.280, 0.324, 0.207, 0.883, 0.783, 0.885, 0.676, 0.410, 0.749),
        "MLP+, ReLU": (0.884, 0.283, 0.413, 0.238, 0.875, 0.851, 0.531, 0.531, 0.340, 0.742),
        "MLP+, Sigmoid": (0.875, 0.314, 0.433, 0.253, 0.869, 0.834, 0.817, 0.605, 0.432, 0.736),
        "MLPN, ReLU": (0.921, 0.295, 0.420, 0.267, 0.895, 0.909, 0.835, 0.672, 0.430, 0.745),
        "MLPN, Sigmoid": (0.957, 0.336, 0.568, 0.275, 0.946, 0.944, 0.920, 0.710, 0.465, 0.788),
    },
    "table4": {
        "CNN": (0.986, 0.744, 0.616, 0.655, 0.983, 0.971, 0.752, 0.845, 0.917, 0.779),
        "CNN-MLP+": (0.980, 0.788, 0.613, 0.684, 0.977, 0.955, 0.564, 0.794, 0.924, 0.767),
        "CNN-A+": (0.974, 0.757, 0.586, 0.704, 0.951, 0.947, 0.835, 0.575, 0.920, 0.775),
        "CNN-MLPN": (0.990, 0.870, 0.685, 0.752, 0.995, 0.984, 0.788, 0.853, 0.957, 0.818),
        "CNN-AN": (0.982, 0.783, 0.766, 0.714, 0.976, 0.973, 0.867, 0.834, 0.928, 0.826),
    },
}

PUBLISHED = {
    table: {row: dict(zip(COLUMNS, values, strict=True)) for row, values in rows.items()}
    for table, rows in _PRINTED.items()
}
"""Accuracies by table, row and condition."""
