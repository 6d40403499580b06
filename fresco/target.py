"""What latents and predictions are made of: flows, and diffusions that preserve variance.

The engine plans, scores and lifts in terms of a flow: latents `(1 - s) x0 + s eps` and the
velocity `eps - x0`. Latents that preserve variance, `x = signal x0 + noise eps` with
`signal^2 + noise^2 = 1`, are a flow's at the same ratio of noise to signal, times a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Prediction = Literal["flow", "epsilon", "v_prediction"]


@dataclass(frozen=True)
class Target:
    """Latents and predictions of a model at one noise level.

    Args:
        prediction: What the scheduler is given: the velocity of a flow, or of latents that
            preserve variance the noise or `v = signal eps - noise x0`.
        sigma: Noise level as a flow has it, noise / (signal + noise), in [0, 1]; below 1 for
            predictions of the noise.

    Example:
        >>> Target("flow", 0.75).noise, Target("v_prediction", 0.75).noise
        (0.75, 0.9486832980505138)
        >>> x0, eps = 3.0, 1.0
        >>> target = Target("epsilon", 0.75)
        >>> x, v = target.to_flow(target.signal * x0 + target.noise * eps, eps)
        >>> round(x, 9), round(v, 9)
        (1.5, -2.0)

    Source:
        `v`: Salimans and Ho, arXiv 2202.00512v2, appendix D. One schedule as another, scaled:
        Karras et al., arXiv 2206.00364v2, appendix B.
    """

    prediction: Prediction
    sigma: float

    @property
    def scale(self) -> float:
        """Latents of this model over those of a flow."""
        if self.prediction == "flow":
            return 1.0
        return float(((1 - self.sigma) ** 2 + self.sigma**2) ** -0.5)

    @property
    def signal(self) -> float:
        """Coefficient of the clean latents in the latents."""
        return (1 - self.sigma) * self.scale

    @property
    def noise(self) -> float:
        """Coefficient of the noise in the latents."""
        return self.sigma * self.scale

    @property
    def predicted_noise(self) -> float:
        """Coefficient of the noise in the prediction."""
        return self.signal if self.prediction == "v_prediction" else 1.0

    def to_flow(self, latents: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Say latents and prediction as latents and velocity of a flow at the same `sigma`.

        Args:
            latents: At this noise level, any float type and shape.
            predicted: For them, the same shape.
        """
        if self.prediction == "flow":
            return latents, predicted
        if self.prediction == "epsilon":
            clean, noise = (latents - self.noise * predicted) / self.signal, predicted
        else:
            clean = self.signal * latents - self.noise * predicted
            noise = self.noise * latents + self.signal * predicted
        return latents / self.scale, noise - clean

    def from_flow(self, latents: Tensor) -> Tensor:
        """Say latents of a flow at `sigma` as those of this model."""
        return latents if self.prediction == "flow" else self.scale * latents

    def from_velocity(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """Say a velocity of a flow as this model's prediction; undoes `to_flow`.

        Args:
            latents: Of a flow at this `sigma`, any float type and shape.
            velocity: For them, the same shape.
        """
        if self.prediction == "flow":
            return velocity
        clean = latents - self.sigma * velocity
        noise = clean + velocity
        if self.prediction == "epsilon":
            return noise
        return self.signal * noise - self.noise * clean
