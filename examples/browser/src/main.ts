import { type Manifest, readManifest } from "./manifest.js";
import type { Answer, Engine } from "./messages.js";
import { ModelSession } from "./model-session.js";
import { Panel } from "./panel.js";
import { browserProblem, type Problem, problemOf } from "./problem.js";
import { findWebgpu } from "./webgpu-adapter.js";

/** Milliseconds without a key after which the text counts as typed. */
const pause = 200;
/** More threads than this gain nothing with matrices as small as these. */
const mostThreads = 4;

const base = new URL("models/", document.baseURI).href;
const prompt = element("prompt", HTMLTextAreaElement);
const live = element("live", HTMLInputElement);
const count = element("tokens", HTMLInputElement);
const writeButton = element("write", HTMLButtonElement);
const stopButton = element("stop", HTMLButtonElement);
const status = element("status", HTMLElement);
const progress = element("progress", HTMLProgressElement);
const problemBox = element("problem", HTMLElement);

let session: ModelSession | undefined;
let engine: Engine = "wasm";
let panels: Panel[] = [];
let loading = new AbortController();
let threads = 1;
let run = 0;
let ready = false;
/** Panels that still write. */
let writing = 0;
let typed: ReturnType<typeof setTimeout> | undefined;

function element<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (found instanceof type) return found;
  throw new Error(`the page has no #${id}`);
}

async function start(): Promise<void> {
  end();
  problemBox.hidden = true;
  progress.hidden = false;
  say("Loading …");
  const missing = browserProblem();
  if (missing) {
    fail(missing);
    return;
  }
  loading = new AbortController();
  const { signal } = loading;
  try {
    const manifest = await readManifest(base, signal);
    show(manifest);
    threads = crossOriginIsolated ? Math.min(mostThreads, navigator.hardwareConcurrency) : 1;
    element("how", HTMLElement).textContent = howItRuns();
    progress.value = 0;
    progress.max =
      engine === "webgpu"
        ? manifest.checkpoint.bytes
        : manifest.models.reduce((sum, { bytes }) => sum + bytes, 0);
    session = new ModelSession(handle);
    session.send({ kind: "load", base, engine, manifest, threads });
  } catch (error) {
    if (!signal.aborted) fail(problemOf(error));
  }
}

/** Gives the models' memory back. */
function end(): void {
  clearTimeout(typed);
  loading.abort();
  session?.end();
  session = undefined;
  ready = false;
  setWriting(0);
}

function show({ models, checkpoint, prompts }: Manifest): void {
  panels = models.map((entry, at) => {
    const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
    if (engine === "wasm") return new Panel(entry, megabytes(entry.bytes));
    return new Panel(entry, at === 0 ? megabytes(checkpoint.bytes) : "The same weights under a plan");
  });
  element("panels", HTMLElement).replaceChildren(...panels.map(({ root }) => root));
  if (prompt.value === "") prompt.value = prompts[0] ?? "";
  const examples = prompts.map((text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text.split("\n")[0] ?? text;
    button.addEventListener("click", () => {
      prompt.value = text;
      write();
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  element("examples", HTMLElement).replaceChildren(...examples);
}

function write(): void {
  clearTimeout(typed);
  if (!ready) return;
  run++;
  if (prompt.value === "") {
    session?.send({ kind: "stop" });
    for (const panel of panels) panel.clear();
    setWriting(0);
    say("Type a prompt.");
    return;
  }
  const maxTokens = Math.min(512, Math.max(1, Math.trunc(count.valueAsNumber) || 1));
  setWriting(panels.length);
  say("Writing …");
  session?.send({ kind: "write", run, prompt: prompt.value, maxTokens });
}

function stop(): void {
  clearTimeout(typed);
  session?.send({ kind: "stop" });
}

function handle(answer: Answer): void {
  if (answer.kind === "progress") progress.value = answer.loaded;
  else if (answer.kind === "ready") {
    progress.hidden = answer.left === 0;
    if (ready) return;
    ready = true;
    write();
  } else if (answer.kind === "failed" && answer.run === undefined) {
    if (engine === "webgpu") refuseWebgpu(answer.problem);
    else fail(answer.problem);
  } else if (answer.kind !== "disposed" && answer.run === run) handleText(answer);
}

/** What belongs to the text that is being written. */
function handleText(answer: Exclude<Answer, { kind: "progress" | "ready" | "disposed" }>): void {
  if (answer.kind === "failed") {
    setWriting(0);
    say("");
    showProblem(answer.problem);
    return;
  }
  const panel = panels[answer.model];
  if (!panel) return;
  if (answer.kind === "begin") {
    problemBox.hidden = true;
    panel.begin(answer.prompt);
  } else if (answer.kind === "piece") panel.add(answer);
  else {
    panel.end(answer.finish);
    setWriting(writing - 1);
    if (writing === 0) say("Done.", panels.map(({ said }) => said).join(" "));
  }
}

/** Goes on without WebGPU, and says why. */
function refuseWebgpu({ message, advice }: Problem): void {
  engine = "wasm";
  offerEngines(`WebGPU was refused: ${message} ${advice}`);
  void start();
}

/** @param note why there is one engine only, or what happened */
function offerEngines(note: string): void {
  for (const input of engineInputs()) {
    input.checked = input.value === engine;
    if (input.value === "webgpu") input.disabled = note !== "";
  }
  element("engine-note", HTMLElement).textContent = note;
}

function engineInputs(): HTMLInputElement[] {
  return [...element("engines", HTMLElement).querySelectorAll("input")];
}

/** What computes, whether there are threads, and why not. */
function howItRuns(): string {
  if (engine === "webgpu") return "WebGPU, with kernels of @coppice/kernels-webgpu.";
  const many = threads === 1 ? "one thread" : `${threads} threads`;
  const how = `WebAssembly with SIMD, ${many}.`;
  return crossOriginIsolated
    ? how
    : `${how} More need a server that sends Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp.`;
}

function setWriting(panelsLeft: number): void {
  writing = panelsLeft;
  writeButton.disabled = !ready;
  stopButton.disabled = writing === 0;
}

/** @param unseen is read out, and not shown */
function say(text: string, unseen = ""): void {
  status.textContent = text;
  element("texts", HTMLElement).textContent = unseen;
}

function fail(problem: Problem): void {
  end();
  progress.hidden = true;
  say("The models are not loaded.");
  showProblem(problem);
}

function showProblem({ message, advice }: Problem): void {
  element("problem-message", HTMLElement).textContent = message;
  element("problem-advice", HTMLElement).textContent = advice;
  problemBox.hidden = false;
}

prompt.addEventListener("input", () => {
  clearTimeout(typed);
  // What is being written continues a text that is not there any more.
  session?.send({ kind: "stop" });
  if (live.checked) typed = setTimeout(write, pause);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    write();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
writeButton.addEventListener("click", write);
stopButton.addEventListener("click", stop);
element("retry", HTMLButtonElement).addEventListener("click", start);
addEventListener("pagehide", end);
addEventListener("pageshow", ({ persisted }) => {
  if (persisted) void start();
});
for (const input of engineInputs()) {
  input.addEventListener("change", () => {
    engine = input.value === "webgpu" ? "webgpu" : "wasm";
    void start();
  });
}
const { isFast, obstacle = "" } = await findWebgpu();
if (isFast) engine = "webgpu";
offerEngines(obstacle);
void start();
