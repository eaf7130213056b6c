"""The demo as a Gradio app, for Spaces: the same model, methods, queue and pictures as the local page has.

    from llava_prumerge.viz.gradio_app import launch

    launch("my-lab/llava-prumerge-7b")

It needs the extra `demo`.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from llava_prumerge.data.images import read_image
from llava_prumerge.viz import demo_requests as requests
from llava_prumerge.viz.demo_examples import drawn_examples
from llava_prumerge.viz.demo_json import QUALITY
from llava_prumerge.viz.demo_model import Answer
from llava_prumerge.viz.demo_offer import Offer, load, parse
from llava_prumerge.viz.demo_queue import Busy, Question, Queue, Said
from llava_prumerge.viz.doors import LOOPBACK, Doors
from llava_prumerge.viz.method_list import NONE
from llava_prumerge.viz.panels import Drawn, Panel, panels_of

TITLE = "Ask about an image, and see which visual tokens answer"
ALL, NOTHING = "all tokens", "nothing"
WITHOUT_PLACES = 2880  # the slider's end where images differ in their number of tokens
DAY = 24 * 3600
SIDES = 2

Update = tuple[Any, ...]


class App:
    """The functions behind the app's buttons.

    Args:
        offer: what there is.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer, self.model, self.queue = offer, offer.model, Queue()

    def ask(
        self, path: str | None, question: str, method: str, own: bool, budget: int, beside: str, length: int
    ) -> Iterator[Update]:
        """Answer with one method or two, as the words come. -> a line about it, and of each side: answer, facts, pictures"""
        sides: list[list[Any]] = [["", "", []] for _ in range(SIDES)]
        yield ("the model is looking ...", *itertools.chain(*sides))  # nothing of before stays beside an error
        chosen = [self.method(method, own, budget)]
        if beside != NOTHING:
            name = NONE if beside == ALL else beside
            chosen.append((name, self.offer.methods.find(name)))
        image, asked = read(path), requests.read_question({"question": question.strip()})
        most = requests.whole_number("longest answer", str(int(length)), requests.MAX_NEW_TOKENS)

        def work(heard: Question) -> None:
            for side, _, found in self.model.answers(image, asked, chosen, most, heard):
                heard.say("answer", side=side, found=found)

        for line, news in self.follow(work):
            for kind, part in news:
                if kind == "text":
                    sides[part["side"]][0] += part["text"]
                elif kind == "answer":
                    side, found = part["side"], part["found"]
                    drawn = Drawn("", "", chosen[side][0], asked, found.seen, self.model.pictures(image, found.seen))
                    sides[side] = [found.text or "(an empty answer)", facts(found), saved(panels_of(drawn))]
            yield (line, *itertools.chain(*sides))

    def look(self, show: str, path: str | None, question: str, method: str, own: bool, budget: int) -> list[Any]:
        """Pictures of the "attention", or of what was "merged", with their captions."""
        (_, block), image = self.method(method, own, budget), read(path)
        asked = requests.read_question({"question": question.strip()})

        def work(heard: Question) -> None:
            heard.say("look", panels=self.model.look(image, asked, block, show))

        found = [part["panels"] for _, news in self.follow(work) for kind, part in news if kind == "look"]
        panels = found[0] if found else []
        if not panels:
            gr.Info("This method merges nothing: each token is one patch.")
        return saved(panels)

    def settings(self, method: str, own: bool, budget: int) -> str:
        """The settings that will be used, budget and all."""
        try:
            return json.dumps(self.method(method, own, budget)[1])
        except ValueError as error:
            return str(error)

    def method(self, name: str, own: bool, budget: int) -> tuple[str, dict[str, Any]]:
        """The name and block of a method with its budget."""
        fields = {"method": name, "budget": "" if own else str(int(budget))}
        return requests.read_method(fields, self.offer.methods, self.offer.chosen, self.model.most)

    def follow(self, work: Callable[[Question], None]) -> Iterator[tuple[str, list[Said]]]:
        """Put work into the queue. -> what to say about it, and what was said, again and again until its end"""

        def safely(heard: Question) -> None:
            try:
                work(heard)
            except ValueError as error:
                heard.say("error", status=400, error=str(error))

        question, after, over = self.queue.ask(safely), 0, False
        try:
            with question.followed():
                while not over:
                    before = self.queue.before(question)
                    news, over = question.read(after, 1.0)
                    after += len(news)
                    for kind, found in news:
                        if kind == "error":
                            raise gr.Error(found["error"], print_exception=False)
                    yield ("" if over else f"{before} before you ..." if before else "the model is looking ..."), news
        finally:
            question.stop()  # who has left cannot come back


def read(path: str | None) -> Any:
    """The image that was chosen, in RGB."""
    if path is None:
        raise ValueError("choose an image first")
    return read_image(path)


def saved(panels: Sequence[Panel]) -> list[tuple[str, str]]:
    """Pictures as files of Gradio's cache, with their captions.

    Each has a place of its own: what Gradio names by its content it writes again while somebody else is reading it.
    """
    folder = Path(get_upload_folder()) / "pictures" / secrets.token_hex(8)
    folder.mkdir(parents=True)
    files = []
    for number, panel in enumerate(panels):
        path = folder / f"{number}_{panel.kind}.jpg"
        panel.picture.convert("RGB").save(path, quality=QUALITY)
        files.append((str(path), panel.caption))
    return files


def facts(answer: Answer) -> str:
    """Counts and times of an answer, in Markdown."""
    seen, layers, at = answer.seen, [], 0
    for count, same in itertools.groupby(seen.layers):
        end = at + len(list(same)) - 1
        layers.append(f"layer{'s' if end > at else ''} {at}{f' to {end}' if end > at else ''}: {count}")
        at = end + 1
    lines = [
        f"**{seen.kept} of {seen.full}** tokens into the decoder, **{seen.equivalent:.4g}** on average over its layers",
        f"first token after **{answer.first:.2f} s**, whole answer {answer.seconds:.2f} s ({answer.new_tokens} tokens)",
        f"tokens that layers see: {'; '.join(layers)}",
    ]
    if answer.untrained:
        lines.append(f"{', '.join(answer.untrained)} has parameters that this model was not trained with")
    return "\n".join(f"- {line}" for line in lines)


def told(function: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """A function of the app, with its first arguments, whose refusals a person sees."""

    def whole(*words: Any) -> Any:
        try:
            return function(*first, *words)
        except (ValueError, Busy) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return whole


def told_on_the_way(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same for a function that gives one thing after another."""

    def each(*words: Any) -> Iterator[Any]:
        try:
            yield from function(*words)
        except (ValueError, Busy) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return each


def build(offer: Offer) -> gr.Blocks:
    """The app, not yet running."""
    app, names = App(offer), list(offer.methods.read())
    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(3600, DAY)) as blocks:
        gr.Markdown(f"## {TITLE}\n{offer.name}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=260
                )
                question = gr.Textbox("What is in this picture?", label="Question (Enter asks)", lines=1, max_lines=6)
                method = gr.Dropdown(names, value=offer.chosen, label="Method")
                own = gr.Checkbox(True, label="the method's own budget")
                end = offer.model.places or WITHOUT_PLACES
                budget = gr.Slider(1, end, value=end // 4, step=1, label="Budget, tokens")
                settings = gr.Textbox(app.settings(offer.chosen, True, 1), label="Settings", interactive=False)
                others = [ALL, NOTHING, *(name for name in names if name != NONE)]
                beside = gr.Dropdown(others, value=ALL, label="Compare with")
                length = gr.Number(requests.NEW_TOKENS, label="Longest answer, tokens", precision=0, minimum=1)
                with gr.Row():
                    stop = gr.Button("Stop", min_width=80)
                    button = gr.Button("Ask", variant="primary", min_width=80)
                examples = [[str(path), asked] for path, asked in _example_files(offer)]
                gr.Examples(examples, [image, question])
            with gr.Column(scale=5, min_width=300):
                status = gr.Markdown()
                with gr.Row():
                    sides = [_side(title) for title in ("the method", "compared with")]
                with gr.Row():
                    views = {"attention": gr.Button("Attention map"), "merged": gr.Button("What was merged")}
                looked = gr.Gallery(label="on demand", columns=2, height="auto", interactive=False)
        _connect(app, (image, question, method, own, budget, beside, length), (status, sides, settings), button, stop)
        for show, view in views.items():
            view.click(told(app.look, show), [image, question, method, own, budget], looked, api_name=show)
    return blocks.queue(max_size=64, default_concurrency_limit=32)  # ours lets one at a time to the model


def _side(title: str) -> list[Any]:
    with gr.Column(min_width=260):
        answer = gr.Textbox(label=title, lines=2, interactive=False)
        counts = gr.Markdown()
        gallery = gr.Gallery(label="kept tokens", columns=2, height="auto", interactive=False)
    return [answer, counts, gallery]


def _connect(app: App, given: Sequence[Any], outputs: Sequence[Any], button: Any, stop: Any) -> None:
    status, sides, settings = outputs
    _, question, method, own, budget, *_ = given
    asked = told_on_the_way(app.ask)
    runs = [
        start(asked, list(given), [status, *itertools.chain(*sides)], api_name=name)
        for start, name in ((button.click, "ask"), (question.submit, False))
    ]
    stop.click(lambda: "stopped", None, status, cancels=runs, api_name=False)
    for changed in (method.change, own.change, budget.release):
        changed(app.settings, [method, own, budget], settings, api_name=False, queue=False)


def _example_files(offer: Offer) -> Iterator[tuple[Path, str]]:
    folder = Path(tempfile.mkdtemp(prefix="examples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for example in drawn_examples() if offer.examples is None else offer.examples:
        suffix = example.content.suffix if isinstance(example.content, Path) else ".png"
        path = folder / f"{example.name}{suffix}"
        path.write_bytes(example.read())
        yield path, example.question


class Guard:
    """Refuses requests that call the app by a name it does not have, as the local page does.

    Args:
        app: an ASGI application.
        doors: decides.
    """

    def __init__(self, app: Any, doors: Doors) -> None:
        self.app, self.doors = app, doors

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] in ("http", "websocket"):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            refused = self.doors.refusal(headers.get("host", ""), headers.get("origin"))
            if refused is not None:
                return await PlainTextResponse(refused, 403)(scope, receive, send)
        return await self.app(scope, receive, send)


def run(offer: Offer, host: str | None = None, port: int | None = None, allowed: Sequence[str] = ()) -> None:
    """Serve until it is interrupted: this machine alone, unless the host or Gradio's own variables say otherwise.

    Args:
        offer: what there is.
        host: the address to serve; on all but loopback ones only names in `allowed` are looked at, if there are any.
        port: 0 takes a free one.
        allowed: names of tunnels and proxies that lead here.
    """
    doors = Doors(host or os.environ.get("GRADIO_SERVER_NAME") or LOOPBACK, tuple(allowed))
    guards = [Middleware(Guard, doors=doors)] if allowed or not doors.is_open else []
    build(offer).launch(
        server_name=host, server_port=_free_port() if port == 0 else port, share=False, ssr_mode=False, show_error=True,
        max_file_size=requests.MAX_BYTES, enable_monitoring=False, run_history=False, app_kwargs={"middleware": guards},
    )  # fmt: skip


def launch(model: str, *words: str, name: str | None = None) -> None:
    """Serve a model's app.

    Args:
        model: a folder, or a name on the Hub.
        *words: options of `llava-prumerge demo`, such as "--method" and a name.
        name: shown in place of the model's own.
    """
    offer = load(parse([model, *words]))
    run(offer if name is None else replace(offer, name=name))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])
