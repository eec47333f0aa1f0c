import { type Manifest, readManifest } from "./manifest.js";
import type { Answer } from "./messages.js";
import { ModelSession } from "./model-session.js";
import { Panel } from "./panel.js";
import { browserProblem, type Problem, problemOf } from "./problem.js";

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
  if (missing) return fail(missing);
  loading = new AbortController();
  const { signal } = loading;
  try {
    const manifest = await readManifest(base, signal);
    show(manifest);
    threads = crossOriginIsolated ? Math.min(mostThreads, navigator.hardwareConcurrency) : 1;
    progress.max = manifest.models.reduce((sum, { bytes }) => sum + bytes, 0);
    session = new ModelSession(handle);
    session.send({ kind: "load", base, models: manifest.models, threads });
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

function show({ models, prompts }: Manifest): void {
  panels = models.map((entry) => new Panel(entry));
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
    return button;
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
    return say("Type a prompt.");
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
  switch (answer.kind) {
    case "progress":
      progress.value = answer.loaded;
      return;
    case "ready":
      ready = true;
      progress.hidden = true;
      return write();
    case "failed":
      if (answer.run === undefined) return fail(answer.problem);
      if (answer.run !== run) return;
      setWriting(0);
      return showProblem(answer.problem);
    case "begin":
      if (answer.run !== run) return;
      problemBox.hidden = true;
      return panels[answer.model]?.begin(answer.prompt);
    case "piece":
      if (answer.run !== run) return;
      performance.mark("piece");
      return panels[answer.model]?.add(answer);
    case "end":
      if (answer.run !== run) return;
      panels[answer.model]?.end(answer.finish);
      setWriting(writing - 1);
      if (writing === 0) say(summary());
  }
}

function summary(): string {
  const texts = panels.map((panel) => `${panel.entry.label}: ${panel.written.trim() || "nothing"}.`);
  return `${texts.join(" ")} ${howItRuns()}`;
}

function howItRuns(): string {
  if (crossOriginIsolated) return `${threads === 1 ? "1 thread" : `${threads} threads`}, SIMD.`;
  return (
    "1 thread, SIMD: threads are not available, because the server does not send Cross-Origin-Opener-Policy: same-origin " +
    "and Cross-Origin-Embedder-Policy: require-corp."
  );
}

function setWriting(panelsLeft: number): void {
  writing = panelsLeft;
  writeButton.disabled = !ready;
  stopButton.disabled = writing === 0;
}

function say(text: string): void {
  status.textContent = text;
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
void start();
