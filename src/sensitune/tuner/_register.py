"""Make SPT one of PEFT's methods, from outside PEFT.

PEFT 0.18 to 0.21 has no plug-in point: ``register_peft_method`` refuses names that its ``PeftType`` enumeration lacks.
So the member is added first. Both steps are guarded, so that importing twice, or a future PEFT that ships SPT itself,
does no harm. To be deleted once PEFT opens its registry.
"""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

_NAME = "SPT"


def spt_type() -> PeftType:
    """The enumeration member of this method, added to PEFT's `PeftType` on first use."""
    if _NAME not in PeftType.__members__:
        member: Any = str.__new__(PeftType, _NAME)
        member._name_ = _NAME
        member._value_ = _NAME
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType.__members__)
        type.__setattr__(PeftType, _NAME, member)  # EnumType's own __setattr__ refuses to touch members
        PeftType._member_names_.append(_NAME)
        PeftType._member_map_[_NAME] = member
        PeftType._value2member_map_[_NAME] = member
    return PeftType(_NAME)


def register(config_class: type, model_class: type) -> None:
    """Enter the method in PEFT's tables, once."""
    if spt_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=_NAME.lower(), config_cls=config_class, model_cls=model_class)
