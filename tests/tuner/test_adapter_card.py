from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import ModelCardData
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from tuned_models import tiny_vit, trained

from sensitune.allocation import random_allocation
from sensitune.errors import AdapterFileError
from sensitune.sites import outline_model
from sensitune.tuner import ModelCard, SptConfig, adapter_card

# PEFT before 0.21 looks for the configuration of a model without a name, and says that there is none.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")


def spt_config(**options: Any) -> SptConfig:
    return SptConfig.from_allocation(random_allocation(outline_model(tiny_vit()), budget=800, rank=2), **options)


def tuned_vit() -> PeftModel:
    return get_peft_model(tiny_vit(), spt_config())


def front_matter(page: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(page.split("---\n")[1])
    return values


def rows(page: str) -> dict[str, list[str]]:
    """Rows of the page's first table by their first cell."""
    cells = [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in page.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells}


def test_a_saved_adapter_has_a_card_without_anything_of_the_template(tmp_path: Path) -> None:
    tuned_vit().save_pretrained(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "More Information Needed" not in page
    assert "<!-- Provide" not in page
    assert front_matter(page) == {"library_name": "peft", "tags": ["sensitune", "spt"]}
    assert "# An SPT adapter of VisionTransformer\n" in page
    assert "- Budget: 800 parameters" in page
    assert "- Trained: 800 parameters, the head not counted" in page
    assert "- Trained whole: `head`" in page
    assert "import sensitune  # registers SPT with PEFT\nfrom peft import PeftModel" in page


def count(cell: str) -> int:
    """``12 (rank 4)`` -> 12; a dot is none."""
    return int(cell.split()[0].replace("·", "0").replace(",", ""))


def test_the_table_counts_every_trained_parameter_once(tmp_path: Path) -> None:
    tuned = tuned_vit()
    tuned.save_pretrained(tmp_path)
    table = rows((tmp_path / "README.md").read_text())
    assert table["operation"][0] == "sites"
    *members, total = [row for name, row in table.items() if name not in {"operation", "---"}]
    sums = [sum(map(count, column)) for column in zip(*members, strict=True)]
    assert sums == [count(cell) for cell in total]
    assert sums[-1] == sum(each.numel() for name, each in trained(tuned).items() if ".head." not in name) == 800
    assert sums[0] == len(tuned.peft_config["default"].plans) == sum(sums[1:-1])


def test_what_is_the_same_in_every_block_is_one_row(tmp_path: Path) -> None:
    tuned_vit().save_pretrained(tmp_path)
    names = set(rows((tmp_path / "README.md").read_text()))
    assert "blocks.*.attn.qkv[q]" in names
    assert "cls_token" in names
    assert not [name for name in names if any(part.isdigit() for part in name.split("."))]


def test_saving_again_writes_the_same_card(tmp_path: Path) -> None:
    tuned = tuned_vit()
    tuned.save_pretrained(tmp_path)
    first = (tmp_path / "README.md").read_text()
    tuned.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == first


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nWritten by hand.\n")
    tuned = tuned_vit()
    for _ in range(2):
        tuned.save_pretrained(tmp_path)
        page = (tmp_path / "README.md").read_text()
        assert front_matter(page) == {"license": "mit", "tags": ["mine", "sensitune", "spt"], "library_name": "peft"}
        assert page.count("# Mine\n\nWritten by hand.") == 1
        assert page.count("### Framework versions") == 1
        assert page.index("An SPT adapter") < page.index("# Mine")


def test_notes_below_the_mark_stay(tmp_path: Path) -> None:
    tuned = tuned_vit()
    tuned.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text() + "\n## My notes\nkept\n")
    tuned.save_pretrained(tmp_path)
    assert path.read_text().endswith("what is below. -->\n\n## My notes\nkept\n")


def test_the_unfilled_template_is_replaced_whatever_peft_wrote_it(tmp_path: Path) -> None:
    template = HubCard.from_template(ModelCardData()).content
    (tmp_path / "README.md").write_text(template + "\n### Framework versions\n\n- PEFT 0.18.1\n")
    adapter_card(spt_config()).write(tmp_path)
    assert "Model Card for Model ID" not in (tmp_path / "README.md").read_text()


def test_a_filled_template_is_somebodys_text(tmp_path: Path) -> None:
    template = HubCard.from_template(ModelCardData()).content
    filled = template.replace("- **Developed by:** [More Information Needed]", "- **Developed by:** me")
    assert filled != template
    (tmp_path / "README.md").write_text(filled)
    adapter_card(spt_config()).write(tmp_path)
    assert "- **Developed by:** me" in (tmp_path / "README.md").read_text()


def test_adapters_with_names_of_their_own_each_have_a_card(tmp_path: Path) -> None:
    tuned = get_peft_model(tiny_vit(), spt_config(), adapter_name="first")
    tuned.add_adapter("second", spt_config())
    for _ in range(2):
        tuned.save_pretrained(tmp_path)
        assert "An SPT adapter" in (tmp_path / "second" / "README.md").read_text()
        page = (tmp_path / "README.md").read_text()
        assert "- [first](<first/README.md>)\n- [second](<second/README.md>)" in page
        assert "More Information Needed" not in page


def test_a_card_above_an_adapter_is_left_alone(tmp_path: Path) -> None:
    template = HubCard.from_template(ModelCardData()).content
    (tmp_path / "README.md").write_text(template)
    tuned_vit().save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "README.md").read_text() == template


def test_a_configuration_alone_gets_no_card(tmp_path: Path) -> None:
    spt_config().save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()


def tiny_bert(name: str) -> nn.Module:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    model = BertForSequenceClassification(config)
    model.name_or_path = name
    return model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_card_of_a_transformers_model_names_it_by_its_last_name_if_it_is_a_folder(tmp_path: Path) -> None:
    base = tmp_path / "home" / "bert"
    tiny_bert("").config.save_pretrained(base)  # PEFT looks for it when it saves
    tuned = get_peft_model(
        tiny_bert(str(base)), SptConfig(target_modules=["query"], r=2, modules_to_save=["classifier"])
    )
    tuned.save_pretrained(tmp_path / "adapter")
    page = (tmp_path / "adapter" / "README.md").read_text()
    _, front, text = page.split("---\n", 2)
    assert "# An SPT adapter of bert\n" in text
    assert str(tmp_path) not in text
    assert "transformers" in yaml.safe_load(front)["tags"]
    assert "- Placement: LoRA of rank 2 in `query`, chosen without data\n- Trained whole: `classifier`" in text


def test_a_method_of_pefts_own_has_a_card_too() -> None:
    card = adapter_card(LoraConfig(r=4, target_modules=["qkv", "fc1"], modules_to_save=["head"]))
    assert card.title == "A LORA adapter"
    assert card.tags == ("lora",)
    placement, loading = card.sections.values()
    assert placement == "- `target_modules`: `fc1`, `qkv`\n- `r`: `4`\n- `modules_to_save`: `head`"
    assert "sensitune" not in loading


def test_a_card_has_its_sections_in_their_order(tmp_path: Path) -> None:
    card = ModelCard("T", "S.", {"One": "1", "Two": "2"}, metadata={"base_model": "a/b"}, packages=("torch",))
    card.write(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert front_matter(page) == {"library_name": "peft", "base_model": "a/b", "tags": ["sensitune"]}
    assert "# T\n\nS.\n\n## One\n\n1\n\n## Two\n\n2\n\n### Framework versions\n" in page
    assert f"- torch {torch.__version__.partition('+')[0]}" in page


def test_only_what_follows_the_sensitivity_is_said_to() -> None:
    claim = "that the task's loss is most sensitive to"
    assert claim not in adapter_card(spt_config()).summary  # placed at random
    assert claim in adapter_card(replace(spt_config(), rule="spt")).summary


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (b"---\na: &a [x, x]\nb: &b [*a, *a]\ntags: [*b]\n---\n", r"an alias \(\*\) is not allowed in line 2"),
        (b"---\ntags: [\n---\n", "in line"),
        (b"# Caf\xe9", "can't decode byte 0xe9"),
    ],
)
def test_a_card_that_cannot_be_read_is_named_and_left_alone(card: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card)
    with pytest.raises(AdapterFileError, match=rf"README.md cannot be read: .*{reason}.* it is written anew"):
        ModelCard("A title", "A summary.", {}).write(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == card
