"""`model.adapt`: which variables are trained, or the section about adapters of low rank."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tl_dist.config.data import PositiveInt, Section


class LoraConfig(Section):
    """Adapters of low rank that are trained instead of kernels (LoRA; Hu et al., arXiv 2106.09685)."""

    lora: PositiveInt
    """the rank. A kernel that is no larger than its adapter would be stays as it is, and untrained"""
    layers: str = ""
    """regular expression, searched in names of layers such as block5_conv1 and block3_attention/query; default: all
    dense, einsum-dense and convolution layers, except grouped and depthwise ones"""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """adapters are multiplied by alpha / rank; default: by 1"""

    @property
    def factor(self) -> float:
        """Return what the product of an adapter's two matrices is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.lora


def _with_rank(value: Any) -> Any:
    if value != "lora":
        return value
    fix = "write 'adapt: {lora: 8}'."
    raise PydanticCustomError("rule", "adapt 'lora' needs a rank.", {"fix": fix, "path": ("model", "adapt")})


Adapt = Annotated[Literal["all", "bias", "norm"] | LoraConfig, BeforeValidator(_with_rank)]
