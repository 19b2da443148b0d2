"""Activation regularisation of a recurrent network: its outputs are kept small, and from changing fast."""

from torch import Tensor


def activation_regularization(outputs: Tensor, dropped: Tensor, alpha: float, beta: float) -> Tensor:
    """Return α mean((m ⊙ h_t)²) + β mean((h_{t+1} - h_t)²), over all steps, rows and units.

    Merity, McCann and Socher 2017 write L2 norms where their code (AWD-LSTM) has these means, on which the published
    α and β count.

    Args:
        outputs: h, (steps, batch, units), of the last layer.
        dropped: m ⊙ h, the same after dropout.
        alpha: α, of the activation regularisation (AR).
        beta: β, of the temporal one (TAR); a single step has no difference.
    """
    outputs, dropped = (part.float() if part.dtype.itemsize < 4 else part for part in (outputs, dropped))
    penalty = outputs.new_zeros(())
    if alpha:
        penalty = penalty + alpha * dropped.square().mean()
    if beta and len(outputs) > 1:
        penalty = penalty + beta * (outputs[1:] - outputs[:-1]).square().mean()
    return penalty
