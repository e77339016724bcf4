"""Numbers in messages."""

import math


def number(value: float, spec: str = ".1f") -> str:
    """A number for a message. It stays short, even if it is huge, infinite or NaN.

    >>> number(0.314), number(2.5e300), number(-3.14159, "+.2f"), number(float("inf"))
    ('0.3', '2.5e+300', '-3.14', 'infinite')
    """
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if abs(value) < 1000:
        return format(value, spec)
    return format(value, ("+" if spec.startswith("+") else "") + ".1e")


def percent(value: float) -> str:
    """A share or a relative error for a message.

    >>> percent(0.271), percent(0.004), percent(float("inf"))
    ('27%', '0.4%', 'more than 1000%')
    """
    if math.isnan(value):
        return "an unknown part"
    if abs(value) > 10:
        return "more than 1000%" if value > 0 else "less than -1000%"
    return f"{value:.1%}" if 0 < value < 0.01 else f"{value:.0%}"
