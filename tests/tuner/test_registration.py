"""SPT enters PEFT's tables once, and leaves a method of that name alone which PEFT ships itself."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from typing import Any

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from sensitune.tuner import SptConfig, SptModel, _register


def tables() -> dict[str, Any]:
    return {
        "members": list(PeftType),
        "names": list(PeftType.__members__),
        "values": dict(PeftType._value2member_map_),
        "configs": dict(PEFT_TYPE_TO_CONFIG_MAPPING),
        "tuners": dict(PEFT_TYPE_TO_TUNER_MAPPING),
        "prefixes": dict(PEFT_TYPE_TO_PREFIX_MAPPING),
    }


def run(code: str) -> None:
    """In a fresh process, since registering cannot be undone."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_method_is_in_every_table_and_behaves_like_a_member_of_the_enumeration() -> None:
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SPT] is SptConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.SPT] is SptModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.SPT] == "spt_"
    assert PeftType("SPT") is PeftType["SPT"] is PeftType.SPT
    assert (PeftType.SPT.name, PeftType.SPT.value, str.__str__(PeftType.SPT)) == ("SPT", "SPT", "SPT")
    assert list(PeftType).count(PeftType.SPT) == 1


def test_registering_again_changes_nothing() -> None:
    before = tables()
    _register.register(SptConfig, SptModel)
    importlib.reload(_register).register(SptConfig, SptModel)
    assert tables() == before


def test_importing_a_second_time_from_scratch_registers_nothing_twice() -> None:
    run("""
        import sys
        from peft import PeftType
        import sensitune
        first = (list(PeftType), PeftType.SPT)
        for name in [name for name in sys.modules if name.split(".")[0] == "sensitune"]:
            del sys.modules[name]
        import sensitune
        assert (list(PeftType), PeftType.SPT) == first
    """)


def test_a_method_of_that_name_in_peft_itself_is_left_alone() -> None:
    run("""
        from peft import PeftConfig, PeftType
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.lora import LoraModel
        from peft.utils import register_peft_method

        member = str.__new__(PeftType, "SPT")  # as if PEFT's source named it
        member._name_ = member._value_ = "SPT"
        type.__setattr__(PeftType, "SPT", member)
        PeftType._member_names_.append("SPT")
        PeftType._member_map_["SPT"] = PeftType._value2member_map_["SPT"] = member

        class TheirConfig(PeftConfig):
            pass

        class TheirModel(LoraModel):
            prefix = "spt_"

        register_peft_method(name="spt", config_cls=TheirConfig, model_cls=TheirModel)
        before = list(PeftType)
        import sensitune
        assert list(PeftType) == before
        assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is TheirConfig
        assert PEFT_TYPE_TO_TUNER_MAPPING[member] is TheirModel
    """)
