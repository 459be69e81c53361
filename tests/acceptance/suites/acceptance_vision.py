"""PEFT's test of a convolutional network whose batch norms are trained and saved whole."""

from adoption import adopt
from tables import BATCHNORM_CASES

globals().update(adopt("test_vision_models", {"CONFIGS": BATCHNORM_CASES}))
