"""P-Sigmoid: the sigmoid of keeping rates that harms a model's answers least at a budget, by Bayesian optimisation.

    python -m llava_prumerge.search.p_sigmoid --model PATH --questions FILE.jsonl --images DIR (--budget N | --flops S)
        [--out p_sigmoid.yaml] [--trials 40] [--sampler gp|tpe] [--seed 0] [--samples 64] [--score kl|loss|agreement]
        [--answer-tokens 1] [--rows last|text] [--batch-size 4] [--template vicuna_v1] [--dtype float32] [--device cpu]

Accelerating Multimodal LLMs by Searching Optimal Vision Token Reduction, Zhao et al., CVPR 2025 (arXiv 2412.00556). No
code was published. Certain: a parametric sigmoid per budget whose parameters Bayesian optimisation tunes; its form,
rate(l) = height * sigmoid(-slope * (l - centre)) from a first reduced layer on, is read off Fig. 1c. Ours: height and
slope are searched and the budget decides the centre, so that every trial meets it; the slope (per whole depth) between
2 and 256, logarithmically; the height between what the budget needs and 1; the objective.

The budget is `--budget`, visual tokens per image averaged over all layers (equivalent tokens), or `--flops`, a share of
the operations of the full decoder's prefill (text included, at the questions' mean lengths). The optimiser is Optuna's
(extra `search`): its Gaussian-process sampler, or TPE. Trials are kept in a journal beside the output; the same command
goes on from there, and ends as an uninterrupted one: each trial's randomness comes from the seed and its number alone.
Written are a method file for the pruner with such a sigmoid (`--method` where there are several; a vision reducer that
the checkpoint names stays) and the curve (PNG).
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llava_prumerge.efficiency.conventions import prefill_flops
from llava_prumerge.efficiency.shapes import LanguageShape, language_shape
from llava_prumerge.methods.search_target import SearchKind, SearchTarget
from llava_prumerge.search.command import ROWS, SCORES, SearchError, run_search, search_parser
from llava_prumerge.search.method_file import block_of, find_target, write_method
from llava_prumerge.search.prefill_cost import budget_for

if TYPE_CHECKING:
    import optuna

    from llava_prumerge.methods.base import DecoderShape

SLOPES = (2.0, 256.0)
"""Steepness per whole depth, from nearly a line to a step within a layer of 32."""
SAMPLERS = ("gp", "tpe")


def import_optuna() -> Any:
    """Optuna, or an error that names the extra."""
    try:
        import optuna
    except ImportError as error:
        raise SearchError("this search needs optuna, of the extra 'search': pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def make_sampler(kind: str, seed: int, trial: int) -> optuna.samplers.BaseSampler:
    """A sampler whose randomness depends on nothing but the seed and the trial's number."""
    optuna = import_optuna()
    mixed = (seed * 1_000_003 + trial) % 2**32
    if kind == "tpe":
        return optuna.samplers.TPESampler(seed=mixed)
    import warnings

    with warnings.catch_warnings():  # of being experimental, where it still is
        warnings.simplefilter("ignore")
        return optuna.samplers.GPSampler(seed=mixed)


def open_study(path: Path, settings: dict[str, Any]) -> optuna.Study:
    """The study kept in a journal, or a new one. Trials that were cut off are marked as failed.

    Raises:
        SearchError: the journal is of other settings.
    """
    optuna = import_optuna()
    path.parent.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend), study_name="p_sigmoid", load_if_exists=True
    )
    held = study.user_attrs.get("settings")
    if held is None:
        study.set_user_attr("settings", settings)
    elif held != settings:
        other = [key for key in settings if held.get(key) != settings[key]]
        differing = ", ".join(f"{key} {held.get(key)!r}, not {settings[key]!r}" for key in other)
        raise SearchError(f"{path} is a search with {differing}: take another --out, or delete it")
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def optimise(
    study: optuna.Study, objective: Callable[[float, float], float], trials: int, kind: str = "gp", seed: int = 0
) -> tuple[float, float, float]:
    """Run what is missing of so many trials.

    Args:
        study: as `open_study` gives it.
        objective: place in [0, 1] between the least height that the budget needs and 1, slope per whole depth -> cost,
            to be least.
        trials: in all, those of earlier runs included.
        kind, seed: of the sampler.

    Returns:
        The best place and slope, and their cost.
    """
    complete = [import_optuna().trial.TrialState.COMPLETE]
    done = len(study.get_trials(states=complete))
    bar = tqdm(total=trials, initial=min(done, trials), desc="p-sigmoid", unit="trial", disable=not sys.stderr.isatty())
    for number in range(done, trials):
        study.sampler = make_sampler(kind, seed, number)
        trial = study.ask()
        place, slope = trial.suggest_float("place", 0.0, 1.0), trial.suggest_float("slope", *SLOPES, log=True)
        study.tell(trial, objective(place, slope))
        bar.set_postfix(best=f"{study.best_value:.4g}")
        bar.update()
    bar.close()
    return study.best_params["place"], study.best_params["slope"], study.best_value


class SigmoidSpace:
    """Sigmoids that meet a budget, as blocks of settings.

    Args:
        shape: of the language model.
        present: visual tokens per image, the mean; `most` the largest number.
        budget: equivalent tokens; or
        flops: a share of the full decoder's operations, with its shape in `decoder` and `text` tokens.
        rows: rows of the prompt that rank.
        method: the pruner that has such a sigmoid, and what it says of it; None where there is one alone.
    """

    def __init__(
        self,
        shape: DecoderShape,
        present: float,
        most: int,
        budget: float | None = None,
        flops: float | None = None,
        decoder: LanguageShape | None = None,
        text: float = 0.0,
        rows: str = "last",
        method: tuple[str, SearchTarget] | None = None,
    ) -> None:
        self.method = find_target(SearchKind.SIGMOID, None) if method is None else method
        if (budget is None) == (flops is None):
            raise SearchError("give one of --budget and --flops")
        self.shape, self.present, self.most, self.rows = shape, present, most, rows
        self.budget, self.flops, self.decoder, self.text = budget, flops, decoder, text
        self.first = self._pruner(self._block(1.0, 1.0, None)).layers[0]
        self.least = (self.first * most + (shape.layers - self.first)) / shape.layers  # one token in each later layer
        if budget is not None and not self.least <= budget < present:
            raise SearchError(
                f"--budget {budget:g} is not from {self.least:g}, which the first {self.first} layers' {most} tokens and "
                f"one in each later layer cost, to below the full model's {present:g}"
            )
        if flops is not None and not 0 < flops < 1:
            raise SearchError(f"--flops {flops:g} is not between 0 and 1")

    def least_height(self, budget: float) -> float:
        """The height of the curve that never falls."""
        later = (budget * self.shape.layers - self.first * self.most) / (self.shape.layers - self.first)
        return max(0.0, min(1.0, later / self.most))

    def block(self, place: float, slope: float) -> dict[str, Any]:
        """The settings of one sigmoid; the slope is per whole depth."""
        budget = self.budget if self.budget is not None else self._budget(place, slope)
        return self._with(place, slope, budget)

    def _with(self, place: float, slope: float, budget: float) -> dict[str, Any]:
        least = self.least_height(budget)
        height = math.ceil((least + place * (1 - least)) * 1e6) / 1e6  # what is written is what is tried
        return self._block(min(1.0, height), float(f"{slope / self.shape.layers:.6g}"), budget)

    def _block(self, height: float, slope: float, budget: float | None) -> dict[str, Any]:
        return block_of(*self.method, height=height, slope=slope, rows=self.rows, budget=budget)

    def layer_tokens(self, block: dict[str, Any]) -> list[int]:
        """Visual tokens of each layer at the mean number of them."""
        present = round(self.present)
        plan = self._pruner(block).schedule.plan(present)
        return [present] * self.first + list(plan)

    def _pruner(self, block: dict[str, Any]) -> Any:
        from llava_prumerge.methods.registry import build_pruner  # with torch, which the help does not need

        return build_pruner(block, self.shape)

    def _budget(self, place: float, slope: float) -> float:
        """The budget in tokens, to a hundredth, whose operations are the share asked for."""
        visual = lambda budget: self.layer_tokens(self._with(place, slope, budget))  # noqa: E731
        flops = lambda budget: prefill_flops(self.decoder, [self.text + count for count in visual(budget)])  # noqa: E731
        full = prefill_flops(self.decoder, [self.text + round(self.present)] * self.shape.layers)
        return round(budget_for(self.flops, full, flops, self.least, self.present), 2)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = search_parser("p_sigmoid", __doc__, Path("runs/search/p_sigmoid.yaml"), 64, method=True)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--budget", type=float, help="visual tokens per image averaged over all layers")
    target.add_argument("--flops", type=float, help="share of the operations of the full decoder's prefill")
    parser.add_argument("--score", choices=SCORES, default="kl", help="what is made least")
    parser.add_argument("--answer-tokens", type=int, default=1, help="tokens of the full model's answer that count")
    parser.add_argument("--rows", choices=ROWS, default="last", help="rows of the prompt that rank")
    parser.add_argument("--trials", type=int, default=40, help="in all, those of an interrupted search included")
    parser.add_argument("--sampler", choices=SAMPLERS, default="gp", help="Gaussian process, or TPE")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def search(given: argparse.Namespace) -> str:
    """Run the search, write the method file and the picture. -> what was found"""
    from llava_prumerge.search.calibration import prepare
    from llava_prumerge.search.comparison import Comparison
    from llava_prumerge.search.drawing import draw_shares

    import_optuna()
    if given.trials < 1:
        raise SearchError(f"--trials {given.trials} is not 1 or more")
    method = find_target(SearchKind.SIGMOID, given.method)
    model, batches, number = prepare(given)
    comparison = Comparison(model, batches, given.score, given.answer_tokens)
    target = {"budget": given.budget, "flops": given.flops, "rows": given.rows}
    counts = {"present": comparison.present, "most": comparison.most, "text": comparison.text}
    space = SigmoidSpace(
        comparison.shape,
        decoder=language_shape(model.config.get_text_config().to_dict()),
        method=method,
        **counts,
        **target,
    )
    names = ("score", "answer_tokens", "sampler", "seed", "template", "dtype")
    settings = {"model": given.model, "questions": str(given.questions), "samples": number, **target}
    settings |= {name: getattr(given, name) for name in names}
    study = open_study(given.out.with_suffix(".journal"), settings)
    place, slope, cost = optimise(
        study, lambda place, slope: comparison.cost(space.block(place, slope)), given.trials, given.sampler, given.seed
    )
    block = space.block(place, slope)
    tokens = comparison.tokens(block)
    equivalent = sum(tokens) / len(tokens)
    asked = f"{given.budget:g} equivalent tokens" if given.flops is None else f"{given.flops:g} of the operations"
    note = (
        f"P-Sigmoid (Zhao et al., CVPR 2025, arXiv 2412.00556): found for {given.model} at {asked} on "
        f"{number} questions of {given.questions.name} in {given.trials} trials, {given.score} cost {cost:.4g} over "
        f"{given.answer_tokens} answer tokens."
    )
    write_method(given.out, block, model.config.reduction, note)
    title = f"P-Sigmoid: {equivalent:.4g} of {comparison.present:.4g} equivalent tokens"
    draw_shares(given.out.with_suffix(".png"), [count / comparison.present for count in tokens], title)
    found = f"height {block['height']:g}, slope {block['slope']:g}, {equivalent:.4g} of {comparison.present:.4g} equivalent tokens"
    return f"{found}, {given.score} cost {cost:.4g}: {given.out}"


main = run_search(search, parse)

if __name__ == "__main__":
    sys.exit(main())
