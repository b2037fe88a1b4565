"""Weight quantisation: formats, rounding, and the modules that hold the result."""

from vla_inference.quantization.formats import FORMATS, Format, get_format
from vla_inference.quantization.linear import QuantLinear

__all__ = ["FORMATS", "Format", "QuantLinear", "get_format"]
