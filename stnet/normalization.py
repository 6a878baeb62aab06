"""How pixels become the numbers that every model here is given."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue in [0, 1]; what torchvision's weights were trained with."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""
