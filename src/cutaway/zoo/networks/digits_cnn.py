"""A small convolutional network for the 8 x 8 images of handwritten digits."""

from jaxtyping import Float
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Two convolutions, a hidden layer, ten classes. What is read further on are the outputs of `act1` [batch channel
    row column] (8 x 8), `act2` [batch channel row column] (4 x 4, after `pool`) and `act3` [batch unit]."""

    def __init__(self, n_channels1: int = 8, n_channels2: int = 24, n_units: int = 48) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, n_channels1, kernel_size=3, padding=1)
        self.act1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(n_channels1, n_channels2, kernel_size=3, padding=1)
        self.act2 = nn.ReLU()
        self.fc1 = nn.Linear(n_channels2 * 16, n_units)
        self.act3 = nn.ReLU()
        self.fc2 = nn.Linear(n_units, 10)

    def forward(self, image: Float[Tensor, "batch one row column"]) -> Float[Tensor, "batch digit"]:
        """Logits of the digits 0 to 9; pixels are between 0 (paper) and 1 (ink)."""
        coarse = self.pool(self.act1(self.conv1(image)))
        features = self.act2(self.conv2(coarse))
        return self.fc2(self.act3(self.fc1(features.flatten(1))))
