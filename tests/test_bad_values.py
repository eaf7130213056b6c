"""Bad values over all commands: each is one line that names what is wrong, exit status 2, and what was there stays as it was."""

from __future__ import annotations

import json
import socketserver
from pathlib import Path

import pytest
from PIL import Image

from llava_prumerge.__main__ import COMMANDS, main
from playground.pocket import build, reproduce, reproduce_methods
from playground.pocket.comparison import prefill, questions

BACKBONES = Path(__file__).resolve().parents[1] / "playground" / "pocket" / "backbones"
EVALUATE = "evaluate task=pope data=data out=results model="
SEARCH = "search layer images=data/pope/val2014 model=MODEL questions="
CHANGES = {  # a checkpoint's folder -> what its config.json says besides
    "LAYER": {"vision_feature_layer": 99},
    "LIST": {"model_type": "prumerge_llava", "reduction": [1]},
    "NOBODYS": {"model_type": "prumerge_llava", "reduction": {"vision": {"name": "nobodys"}}},
    "TEXT": {"text_config": {"model_type": "llama", "hidden_size": "big"}},
    "KIND": {"text_config": {"model_type": "nobodys"}},
    "BERT": {"model_type": "bert"},
    "NOTYPE": {"model_type": None},
}
TABLE = f"""
methods nobodys | 'nobodys' is not known
methods prumerge more | 'more' is one argument too many
viz x.png method=prumerge tower=NOWHERE | NOWHERE
viz x.png method=prumerge model=BERT | 'bert'
viz x.png method=prumerge model=NOTYPE | NOTYPE
viz x.png method=prumerge model=TEXT | 'hidden_size' expected int
viz x.png method=prumerge model=KIND | nobodys
viz x.png method=prumerge model=MODEL budget=x | budget 'x' is not a positive whole number
viz x.png method=prumerge model=MODEL iqr_factor=.nan | iqr_factor nan
viz x.png method=prumerge model=LAYER | vision_feature_layer 99
viz x.png model=LIST | LIST/config.json: reduction must be
viz x.png model=NOBODYS | 'nobodys' is not known
viz questions.jsonl method=prumerge tower={BACKBONES}/clip | questions.jsonl is none of JPEG
viz x.png method=broken.yaml model=MODEL | broken.yaml
viz x.png method=grid method=fastv model=MODEL budget=3 | settings (budget) need one method
viz x.png method=fastv tower={BACKBONES}/clip | give --model, not --tower
viz x.png model=MODEL | MODEL has no method of its own; give --method
chat NOWHERE device=cpu | NOWHERE
chat MODEL absent.png device=cpu | absent.png
chat MODEL load=3bit device=cpu | load '3bit' is not known
chat MODEL new_tokens=0 device=cpu | '0' is not a whole number of at least 1
chat MODEL reduction=fastv layer=99 device=cpu | layers [99] must lie within 0 to 5
chat MODEL reduction=nobodys | 'nobodys' is not known
demo MODEL port=-1 device=cpu | --port -1 is not within 0 to 65,535
demo MODEL port=65536 device=cpu | --port 65536
demo MODEL host=not~a~host port=0 device=cpu | not a host:0 cannot be served
demo MODEL examples=NOWHERE port=0 device=cpu | NOWHERE: no such folder of examples
demo MODEL examples=data port=0 device=cpu | data: 0 images
demo MODEL gradio=maybe | --gradio is on or off
serve MODEL port=-1 | --port -1 is not within 0 to 65,535
serve nowhere/at/all | nowhere/at/all
serve MODEL reduction=nobodys | 'nobodys' is not known
serve MODEL colour=red | 'colour'
demo MODEL device=banana | device=banana: torch cannot use it here; take cpu, cuda or cuda:NUMBER
demo MODEL dtype=float99 | dtype 'float99' is not known; did you mean 'float32'
{EVALUATE}MODEL device=banana | device=banana
{EVALUATE}MODEL attn=banana | 'banana' is not known; there are: eager
{EVALUATE}MODEL template=banana | unknown template 'banana'
{EVALUATE}MODEL batch_size=0 | batch_size must be a whole number from 1
{EVALUATE}MODEL trusted=nowhere | trusted=nowhere: no such folder
{EVALUATE}MODEL method=fastv layer=99 | layers [99] must lie within 0 to 5
{EVALUATE}LIST | LIST/config.json: reduction must be
{EVALUATE}TEXT | 'hidden_size' expected int
{EVALUATE}x.png | x.png
train pocket/finetune_lora learning_rate=fast | learning_rate='fast'
train pocket/finetune_lora data=questions.jsonl.gz | questions.jsonl.gz
train pocket/finetune_lora device=banana | 'banana'
train pocket/finetune_lora reduction.vision=7 | reduction
train broken.yaml | broken.yaml
train pocket/finetune_lora model=TEXT dry_run=true | TEXT
train pocket/finetune_lora vision_tower=NOTYPE language_model={BACKBONES}/lm dry_run=true | NOTYPE
efficiency flops model=TEXT/config.json | TEXT/config.json
efficiency flops tokens=-3 | -3
efficiency roofline prompt=-1 | settings (prompt=-1) need --method
{SEARCH}absent.jsonl | absent.jsonl: no such file
{SEARCH}questions.jsonl batch_size=0 | '0' is not a whole number of at least 1
{SEARCH}questions.jsonl trusted=nowhere | trusted=nowhere: no such folder
{SEARCH}questions.jsonl device=banana | device=banana
convert MODEL there to=banana | --to 'banana' is not known
convert MODEL there shard_size=0 | --shard-size
convert NOWHERE there | NOWHERE
convert TEXT there | TEXT
release NOWHERE me/mine | NOWHERE: no such folder
release MODEL me/mine dry_run=true license=mit space=data | --space data holds pope
release MODEL me/mine dry_run=true license=mit out=there space=there | is the release's own folder
release LIST me/mine dry_run=true license=mit | LIST/config.json: reduction must be
profile MODEL absent.png | absent.png: no such file
profile MODEL x.png new_tokens=1 | --new-tokens 1 is not 2 or more
profile MODEL x.png method=fastv method=nobodys | 'nobodys' is not known
profile MODEL x.png method=fastv device=banana | device=banana
profile MODEL x.png | has no method of its own: name one with --method
throughput task=pope data=data model=MODEL rounds=0 | --rounds 0
throughput task=pope data=data model=MODEL device=banana | device=banana
training-speed pocket/pretrain steps=1 | --steps
footprint absent.json | absent.json
prepare check broken.yaml | broken.yaml
score task=pope answers=absent.jsonl questions=questions.jsonl annotations=data/pope/coco | absent.jsonl
compare nowhere | nowhere
compare nowhere plot=x.svg | --plot x.svg must end in .png
tables nowhere out=there | nowhere
"""
CASES = [tuple(part.strip() for part in line.split(" | ")) for line in TABLE.strip().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket model, its config.json spoilt in many ways, POPE with two questions, an image, a broken YAML file."""
    from llava_prumerge import assemble

    place = tmp_path_factory.mktemp("bad")
    model, processor = assemble(BACKBONES / "lm", BACKBONES / "clip")
    model.save_pretrained(place / "MODEL")
    processor.save_pretrained(place / "MODEL")
    config = json.loads((place / "MODEL" / "config.json").read_text())
    for name, change in CHANGES.items():
        (place / name).mkdir()
        for file in (place / "MODEL").iterdir():
            (place / name / file.name).symlink_to(file)
        (place / name / "config.json").unlink()
        said = {key: value for key, value in {**config, **change}.items() if value is not None}
        (place / name / "config.json").write_text(json.dumps(said))
    pope = place / "data" / "pope"
    (pope / "val2014").mkdir(parents=True)
    (pope / "coco").mkdir()
    for path in (place / "x.png", pope / "val2014" / "0.png"):
        Image.new("RGB", (60, 50), "red").save(path)
    asked = [
        {"question_id": at, "image": "0.png", "text": f"Is there a {what}?", "label": "yes", "category": "random"}
        for at, what in enumerate(("cat", "dog"))
    ]
    lines = "".join(json.dumps(record) + "\n" for record in asked)
    for path in (place / "questions.jsonl", pope / "llava_pope_test.jsonl", pope / "coco" / "coco_pope_random.json"):
        path.write_text(lines)
    (place / "broken.yaml").write_text("a: [1")
    return place


@pytest.fixture
def world(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socketserver.BaseServer, "serve_forever", lambda *_: pytest.fail("it serves"))
    return made


def snapshot(place: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file but answer files, whose headers say what was asked last."""
    files = [path for path in place.rglob("*") if path.is_file() and "results" not in path.parts]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_the_table_is_about_every_command() -> None:
    assert {words.split()[0] for words, _ in CASES} == set(COMMANDS) and len(CASES) >= 40


@pytest.mark.parametrize("wrong", ["device=banana", "attn=banana"])
def test_what_is_answered_already_hides_no_bad_value(
    wrong: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a host that hides its GPUs, and where every answer is there so that no model is loaded."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = f"{EVALUATE.replace('results', 'answered')}MODEL device=cpu".split()
    assert main(words) == 0
    assert main([*words[:-1], wrong]) == 2
    assert "banana" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("words", "told"), CASES, ids=[words[:60] for words, _ in CASES])
def test_a_bad_value_is_one_line(words: str, told: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(world)
    assert main([word.replace("~", " ") for word in words.split()]) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said.err.rstrip().endswith(errors[0]) and told in errors[0], said.err
    assert "Traceback" not in said.err
    assert before.items() <= snapshot(world).items(), "a file that was there has changed"


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        (build, "dat", "part 'dat' is not known; did you mean 'data'?"),
        (build, "data sead=3", "setting 'sead' is not known; did you mean 'seed'?"),
        (build, "data seed=x", "seed='x' is not of type int"),
        (build, "clip steps=-1", "steps=-1 is not a number of at least 0"),
        (build, "lm fresh", "'fresh'"),
        (reproduce, "--lanes 0", "'0' is not a whole number of at least 1"),
        (reproduce, "--only nothing", "--only 'nothing' is part of no step's name"),
        (reproduce_methods, "--scale -1", "--scale -1 is not above 0"),
        (reproduce_methods, "--lanes x", "'x' is not a whole number of at least 1"),
        (questions, "--runs a --root b --scale 0", "--scale 0 is not a number above 0"),
        (prefill, "--runs a --root b --repeats 0", "'0' is not a whole number of at least 1"),
        (prefill, "--runs a", "--root"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_pocket_worlds_commands(command: object, words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words.split()) == 2  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error
