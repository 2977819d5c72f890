"""The range check that costs and links share."""


def require_between(
    name: str, value: float, low: float, high: float, open_low: bool = False
) -> None:
    """Raise ValueError, naming the value, unless it is in [low, high] (or (low, high])."""
    inside = low < value <= high if open_low else low <= value <= high
    if not inside:  # NaN is outside as well
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}={value} must be in {bracket}{low}, {high}]")
