"use strict";
const at = id => document.getElementById(id);
const ACROSS = 4, GAP = 6;  // tiles beside each other, and pixels between them
const VIEWS = ["attention", "merged"];  // what is drawn on demand, by the name of its button
const TRIES = 6;  // to read on after a connection broke

let image = null, offer = { methods: {}, budgeted: [], examples: [] }, limit = Infinity;
let run = null;  // what is being asked: its id on the server, and whether its answers still belong on the page
let last = null;  // what was asked last, for what is looked at on demand

const say = (text, bad = false) => { at("status").textContent = text; at("status").className = bad ? "bad" : ""; };
const make = (name, text = "", kind = "") => Object.assign(document.createElement(name), { textContent: text, className: kind });

// ---------------------------------------------------------------- what is asked

// What is on the page is about what was asked last: nothing of before stays beside an error.
const clear = () => {
  if (run) stop();
  last = null;
  at("result").hidden = true; at("sides").replaceChildren(); at("looked").replaceChildren();
};
const forget = () => {
  image = null; at("file").value = "";
  URL.revokeObjectURL(at("preview").src);
  at("preview").removeAttribute("src"); at("preview").hidden = true; at("hint").hidden = false;
};
const choose = file => {
  if (!file) return;
  clear(); forget();
  if (file.size > limit) return say(`the image has ${file.size} bytes; at most ${limit} are accepted`, true);
  image = file;
  at("preview").src = URL.createObjectURL(file);
  at("preview").hidden = false; at("hint").hidden = true;
  say("");
};
at("preview").onerror = () => {
  if (!at("preview").getAttribute("src")) return;
  forget(); say("this is no image that can be shown; choose another one", true);
};
at("file").onchange = event => choose(event.target.files[0]);
for (const kind of ["dragover", "dragleave", "drop"]) at("drop").addEventListener(kind, event => {
  event.preventDefault();
  at("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop") choose(event.dataTransfer.files[0]);
});

const budget = () => at("own").checked || at("own").disabled ? "" : at("budget").value;

let told = 0;
const tellSettings = async () => {  // as they will be, budget and all
  const number = ++told, method = at("method").value;
  const takes = offer.budgeted.includes(method);
  at("own").disabled = !takes; at("budget").disabled = !takes || at("own").checked;
  at("told").textContent = !takes ? "this method takes none" : budget() ? `${budget()} tokens` : "the method's own";
  try {
    const reply = await fetch(`/settings?${new URLSearchParams({ method, budget: budget() })}`);
    const settings = await reply.json();
    if (number !== told) return;  // an older answer than another one
    at("block").textContent = reply.ok ? JSON.stringify(settings.reduction) : settings.error;
    at("block").className = reply.ok ? "" : "bad";
  } catch (error) { at("block").textContent = ""; }
};
at("method").onchange = at("own").onchange = at("budget").oninput = tellSettings;

const useExample = async (number, example) => {
  try {
    const reply = await fetch(`/example?number=${number}`);
    if (!reply.ok) throw new Error((await reply.json()).error);
    choose(await reply.blob());
    at("question").value = example.question;
  } catch (error) { say(`no example: ${error.message}`, true); }
};

// ---------------------------------------------------------------- what comes back

// Server-sent events of one answer, read on where a connection broke.
const follow = async (mine, address, request, hear) => {
  let after = 0, ended = false;
  const take = block => {
    const fields = Object.fromEntries(block.split("\n").filter(line => /^\w+: /.test(line)).map(line => {
      const colon = line.indexOf(": ");
      return [line.slice(0, colon), line.slice(colon + 2)];
    }));
    if (!fields.event) return;
    const data = JSON.parse(fields.data);
    if (fields.id) after = Number(fields.id);
    if (fields.event === "end") ended = true;
    else if (fields.event === "queue") mine.id = data.id;
    if (mine === run) hear(fields.event, data);
  };
  const read = async reply => {
    if (!reply.ok) throw Object.assign(new Error((await reply.json()).error), { told: true });
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      blocks.forEach(take);
    }
  };
  let failure = null;
  for (let attempt = 0; !ended && attempt < TRIES; attempt++) {
    if (attempt) await new Promise(done => setTimeout(done, 250 * 2 ** attempt));
    try {
      if (!attempt) await read(await fetch(address, request));
      else await read(await fetch(`/follow?${new URLSearchParams({ id: mine.id, after })}`));
    } catch (error) { failure = error; }
    if (!ended && (failure?.told || !mine.id)) throw failure || new Error("the connection broke");
  }
  if (!ended) throw failure || new Error("the connection broke");
};

const stop = () => {
  const mine = run;
  run = null;
  if (mine?.id) fetch(`/stop?${new URLSearchParams({ id: mine.id })}`, { method: "POST" }).catch(() => {});
  free();
};
const free = () => { at("ask").disabled = false; at("stop").disabled = true; for (const show of VIEWS) at(show).disabled = false; };

const ask = async (path, fields, file, hear) => {
  const mine = run = { id: null };
  let refused = false;
  at("ask").disabled = true; at("stop").disabled = false; for (const show of VIEWS) at(show).disabled = true;
  say("the model is looking ...");
  try {
    const type = file.type.startsWith("image/") ? file.type : "image/unknown";
    const headers = { "Content-Type": type, "Accept": "text/event-stream" };
    await follow(mine, `${path}?${new URLSearchParams(fields)}`, { method: "POST", body: file, headers }, (kind, data) => {
      if (kind === "queue") say(data.before ? `${data.before} before you ...` : "the model is looking ...");
      else if (kind === "error") { refused = true; clear(); say(data.error, true); }
      else hear(kind, data);
    });
    if (mine === run && !refused) say("");
  } catch (error) {
    if (mine === run) { clear(); say(error.told ? error.message : `no answer: ${error.message}`, true); }
  }
  if (mine === run) { run = null; free(); }
};

at("form").onsubmit = async event => {
  event.preventDefault();
  if (run) return;
  clear();
  if (!image) return say("choose an image first", true);
  const method = at("method").value, beside = at("beside").value === method && !budget() ? "" : at("beside").value;
  const fields = { question: at("question").value, method, budget: budget(), new_tokens: at("length").value };
  const sides = [addSide(method, fields.budget), ...(beside ? [addSide(beside, "")] : [])];
  const asked = { fields: { question: fields.question, method, budget: fields.budget }, image };
  let pictures = [];
  await ask("/ask", { ...fields, beside }, image, (kind, data) => {
    at("result").hidden = false;
    const side = sides[data.side], answer = side?.querySelector(".answer");
    if (kind === "begin") answer.classList.add("writing");
    if (kind === "text") answer.textContent += data.text;
    if (kind !== "answer") return;
    answer.classList.remove("writing");
    last = asked;
    pictures = data.pictures ? load(data.pictures) : pictures;
    show(side, data, pictures);
  });
  for (const side of sides) side.querySelector(".answer").classList.remove("writing");
};
at("question").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); at("form").requestSubmit(); }
};
at("stop").onclick = () => { stop(); say("stopped"); };
for (const show of VIEWS) at(show).onclick = () => last && ask("/look", { ...last.fields, show }, last.image, (kind, data) => {
  if (kind === "look") showLook(data);
});

// ---------------------------------------------------------------- what is shown

const addSide = (method, tokens) => {
  const side = at("side").content.firstElementChild.cloneNode(true);
  side.querySelector("h2").textContent = `${method === "none" ? "none: all tokens" : method}${tokens ? `, budget ${tokens}` : ""}`;
  at("sides").append(side);
  return side;
};

const show = (side, result, pictures) => {
  const { full, kept, layers, mean } = result.tokens;
  const put = (name, text) => { side.querySelector(`[data-is=${name}]`).textContent = text; };
  side.querySelector(".answer").textContent = result.answer || "(an empty answer)";
  put("kept", `${kept} of ${full}`); put("mean", mean);
  put("first", `${result.first.toFixed(2)} s`); put("time", `${result.seconds.toFixed(2)} s, ${result.new_tokens} tokens`);
  const note = side.querySelector(".note");
  note.hidden = !result.untrained.length;
  note.textContent = `${result.untrained.join(", ")} has parameters that this model was not trained with`;
  result.stages.forEach((stage, number) => {
    const others = stage.others ? `, ${stage.others} of several patches or none` : "";
    const caption = `${stage.layer ? `from layer ${stage.layer} on` : "into the decoder"}: ${stage.tokens} tokens${others}`;
    const units = stage.units.map(tile => new Set(tile));
    const all = units.every((tile, at) => tile.size === result.grids[at][0] * result.grids[at][1]);
    draw(side.querySelector(".pictures"), caption, !number, pictures, result.grids, (pen, tile, unit, box) => {
      if (all) return;  // a line around every patch would tell nothing
      if (units[tile].has(unit)) {
        const line = pen.lineWidth = number ? 4 : 2;  // small pictures are scaled down, with their lines
        pen.strokeStyle = "#d62728"; pen.strokeRect(box[0] + line / 2, box[1] + line / 2, box[2] - line, box[3] - line);
      }
      else { pen.fillStyle = "rgb(255 255 255 / .78)"; pen.fillRect(...box); }
    });
  });
  const bars = side.querySelector(".layers");
  bars.replaceChildren(...layers.map((tokens, layer) => {
    const bar = make("div");
    bar.style.height = `${100 * tokens / full}%`;
    bar.title = `layer ${layer}: ${tokens} tokens`;
    return bar;
  }));
  bars.setAttribute("aria-label", `tokens per layer: ${layers.join(", ")}`);
  const [first, end] = side.querySelectorAll(".ends span");
  first.textContent = `layer 0: ${layers[0]}`; end.textContent = `layer ${layers.length - 1}: ${layers.at(-1)}`;
  side.querySelector(".found").hidden = false;
};

const showLook = look => {
  at("looked").replaceChildren(...look.pictures.map(({ caption, source }) => {
    const figure = make("figure"), picture = make("img");
    picture.src = source; picture.alt = caption;
    figure.append(picture, make("figcaption", caption));
    return figure;
  }));
  if (!look.pictures.length) at("looked").replaceChildren(make("p", "This method merges nothing: each token is one patch."));
};

const load = addresses => addresses.map(address => Object.assign(new Image(), { src: address }));

// All tiles of an image on one canvas; `paint` marks each unit of each tile.
const draw = async (where, caption, large, pictures, grids, paint) => {
  const figure = make("figure", "", large ? "large" : ""), sheet = make("canvas");
  sheet.setAttribute("role", "img"); sheet.setAttribute("aria-label", caption);
  figure.append(sheet, make("figcaption", caption));
  where.append(figure);
  await Promise.all(pictures.map(picture => picture.decode()));
  const across = Math.min(ACROSS, pictures.length), places = [];
  let top = 0, width = 0;
  for (let start = 0; start < pictures.length; start += across) {
    let left = 0, height = 0;
    for (const picture of pictures.slice(start, start + across)) {
      places.push([left, top]);
      left += picture.naturalWidth + GAP; height = Math.max(height, picture.naturalHeight);
    }
    width = Math.max(width, left - GAP); top += height + GAP;
  }
  sheet.width = width; sheet.height = top - GAP;
  const pen = sheet.getContext("2d");
  pen.fillStyle = "white"; pen.fillRect(0, 0, sheet.width, sheet.height);
  pictures.forEach((picture, tile) => {
    const [left, up] = places[tile], [rows, columns] = grids[tile];
    pen.drawImage(picture, left, up);
    for (let unit = 0; unit < rows * columns; unit++) {
      const row = Math.floor(unit / columns), column = unit % columns;
      const x = Math.round(column * picture.naturalWidth / columns), y = Math.round(row * picture.naturalHeight / rows);
      const right = Math.round((column + 1) * picture.naturalWidth / columns);
      const bottom = Math.round((row + 1) * picture.naturalHeight / rows);
      paint(pen, tile, unit, [left + x, up + y, right - x, bottom - y]);
    }
  });
  sheet.dataset.done = "yes";
};

// ---------------------------------------------------------------- the start

fetch("/methods").then(reply => reply.json()).then(found => {
  offer = found; limit = found.max_bytes;
  at("model").textContent = found.model;
  const names = Object.keys(found.methods);
  at("method").replaceChildren(...names.map(name => new Option(name, name, false, name === found.chosen)));
  at("beside").replaceChildren(new Option("nothing", ""), ...names.map(name =>
    new Option(name === "none" ? "all tokens" : name, name, false, name === "none")));
  at("length").max = found.max_new_tokens;
  at("budget").max = found.places || 2880;  // without a fixed number: that of the largest images of the common models
  at("budget").value = Math.round(at("budget").max / 4);
  at("examples").replaceChildren(...found.examples.map((example, number) => {
    const button = make("button"), small = make("img");
    button.type = "button"; button.title = example.question;
    small.src = `/example?number=${number}&small=yes`; small.alt = "";
    button.append(small, example.name);
    button.onclick = () => useExample(number, example);
    return button;
  }));
  at("examples").hidden = !found.examples.length;
  return tellSettings();
}).catch(error => say(`no methods: ${error.message}`, true));
