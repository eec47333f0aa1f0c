// Runs the models, so that the page stays free: a token holds its thread up while it is computed.
import { isCoppiceError } from "@coppice/core";
import type { Answer, Finish, Request } from "./messages.js";
import { problemOf } from "./problem.js";
import type { WritingModel } from "./writing-model.js";

type Load = Extract<Request, { kind: "load" }>;
type Write = Extract<Request, { kind: "write" }>;

const answer = (message: Answer) => postMessage(message);
let models: WritingModel[] = [];
/** Opens the models that are not loaded yet. */
let waiting: (() => Promise<WritingModel>)[] = [];
let writing = new AbortController();
/** Requests are done one after the other; `writing` makes the present one end early. */
let last = Promise.resolve();

addEventListener("message", ({ data }: MessageEvent<Request>) => {
  writing.abort();
  writing = new AbortController();
  const { signal } = writing;
  last = last.then(() => handle(data, signal));
});

async function handle(request: Request, signal: AbortSignal): Promise<void> {
  try {
    if (request.kind === "load") await load(request);
    if (request.kind === "write") await write(request, signal);
    if (request.kind === "dispose") {
      await dispose();
      answer({ kind: "disposed" });
    }
  } catch (error) {
    // Without models it was the loading that failed.
    const run = request.kind === "write" && models.length > 0 ? { run: request.run } : {};
    answer({ kind: "failed", ...run, problem: problemOf(error) });
  }
}

/** Opens the first model; the others follow when it has written, so that its text does not wait for them. */
async function load({ base, engine, manifest, threads }: Load): Promise<void> {
  const progress = (loaded: number) => answer({ kind: "progress", loaded });
  // Each engine is a script of its own, of which a page needs one.
  if (engine === "webgpu") {
    const { openWebgpuModels } = await import("./webgpu-models.js");
    const all = await openWebgpuModels(base, manifest, progress);
    waiting = all.map((model) => async () => model);
  } else {
    const { wasmModels } = await import("./wasm-models.js");
    waiting = wasmModels(base, manifest.models, threads, progress);
  }
  await openNext();
}

/** Opens the next model that waits. One that fails ends all. */
async function openNext(): Promise<void> {
  const open = waiting.shift();
  if (!open) return;
  try {
    models.push(await open());
  } catch (error) {
    await dispose();
    throw error;
  }
  answer({ kind: "ready", left: waiting.length });
}

async function dispose(): Promise<void> {
  const gone = models;
  models = [];
  waiting = [];
  for (const model of gone) await model.dispose();
}

/** The text of every model; of those that are not loaded yet when the others have theirs. */
async function write(request: Write, signal: AbortSignal): Promise<void> {
  let written = 0;
  for (;;) {
    const loaded = models.length;
    await writeInTurns(request, written, signal);
    written = loaded;
    if (waiting.length === 0) return;
    if (signal.aborted) break;
    await openNext();
  }
  for (const index of waiting.keys()) {
    answer({ kind: "end", run: request.run, model: written + index, finish: "stopped" });
  }
}

/** Models from `first` on in turns, token by token, so that each has the processor to itself when it is timed. */
async function writeInTurns(
  { run, prompt, maxTokens }: Write,
  first: number,
  signal: AbortSignal,
): Promise<void> {
  const texts = models.slice(first).map((model, at) => {
    const index = first + at;
    const tokens = model.encode(prompt);
    const shown = Array.from(tokens, (token) => ({ token, text: model.decode([token]) }));
    answer({ kind: "begin", run, model: index, prompt: shown });
    return { index, pieces: model.stream(tokens, { experts: true, maxTokens, signal }) };
  });
  const open = new Set(texts);
  try {
    while (open.size > 0) {
      for (const text of open) {
        const { index: model, pieces } = text;
        // Lets the next request in, which may end this one.
        await turn();
        const start = performance.now();
        const step = await next(pieces);
        const milliseconds = performance.now() - start;
        if (typeof step === "string") {
          open.delete(text);
          answer({ kind: "end", run, model, finish: step });
        } else {
          const { experts = [], ...piece } = step;
          answer({ kind: "piece", run, model, ...piece, milliseconds, choices: experts });
        }
      }
    }
  } finally {
    // Where one failed, the others give their memory back.
    for (const { pieces } of open) await pieces.return(undefined as never);
  }
}

/** The next piece, or why there is none. */
async function next(pieces: ReturnType<WritingModel["stream"]>) {
  try {
    const { done, value } = await pieces.next();
    return done ? (value.finish satisfies Finish) : value;
  } catch (error) {
    if (isCoppiceError(error, "COPPICE_ABORTED")) return "stopped" satisfies Finish;
    throw error;
  }
}

const channel = new MessageChannel();

/** Resolves when messages that came before are handled. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    channel.port1.onmessage = () => resolve();
    channel.port2.postMessage(undefined);
  });
}
