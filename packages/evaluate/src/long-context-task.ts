import { CoppiceError, checkWholeNumber, type MoeModel, Rng } from "@coppice/core";
import { encodePrompt } from "./encode-prompt.js";
import type { TaskScore } from "./evaluate-task.js";
import { bootstrapMean, type Interval, wilsonInterval } from "./intervals.js";
import { type Metric, metrics } from "./metrics.js";
import type { GenerationSample, GenerationTask } from "./task.js";
import type { Tokenizer } from "./tokenizer.js";

/** Where a sample hides what it asks for. */
export interface Place {
  /** Most tokens of prompt and answer; the prompt is filled up to it. */
  readonly length: number;
  /** 0: at the begin of the prompt, 1: right before the question. */
  readonly depth: number;
}

/** A task whose samples have chosen lengths, and know where in them the answer stands. */
export interface LongContextTask {
  readonly task: GenerationTask;
  /** The metric that it is meant for. */
  readonly metric: Metric;
  /** One per sample. */
  readonly places: readonly Place[];
}

export interface LongContextOptions {
  readonly tokenizer: Tokenizer;
  readonly model: Pick<MoeModel, "contextLength">;
  /** Tokens. */
  readonly lengths: readonly number[];
  /** Default 0, 0.25, 0.5, 0.75 and 1. */
  readonly depths?: readonly number[];
  /** Samples of every length and depth. Default 20. */
  readonly samples?: number;
  /** Default 0. The same seed gives the same samples. */
  readonly seed?: number;
  /** The prompts will be put into the checkpoint's chat template, which takes some of the length. Default false. */
  readonly chat?: boolean;
}

export const defaultDepths: readonly number[] = [0, 0.25, 0.5, 0.75, 1];
const defaultSamples = 20;

/** Limits of what is asked for at once; each exists so that a slip of the keyboard fails with a message. */
export const longContextLimits = {
  /** Lengths, and depths: more make no table that anyone reads. */
  places: 100,
  /** Samples of one length and depth; the interval of a share is then at most 0.02 wide. */
  samples: 10_000,
} as const;

/** A question with its answer, and how the parts of a prompt become text. */
export interface Asked {
  readonly answer: string;
  readonly keywords?: readonly string[];
  prompt(parts: readonly string[]): string;
}

/** A sample before its prompt has been filled. */
export interface SampleMaker {
  /** The part of the prompt that has index `i`, as if the answer were in none. */
  part(i: number): string;
  /** Puts what is asked into the parts, at the index that the depth says. */
  ask(parts: readonly string[], depth: number): Asked & { readonly parts: readonly string[] };
}

/**
 * Makes a task of all lengths, depths and samples. Samples of one length and number differ in what is asked alone, so that
 * depths can be compared.
 * @param maker makes a sample from a generator of its own
 * @throws COPPICE_USAGE, COPPICE_TASK_TOO_LONG for lengths beyond the model's context
 */
export function longContextTask(
  name: string,
  metric: Metric,
  options: LongContextOptions,
  maker: (rng: Rng) => SampleMaker,
): LongContextTask {
  const {
    tokenizer,
    chat = false,
    depths = defaultDepths,
    samples: count = defaultSamples,
    seed = 0,
  } = options;
  checkLengths(options.lengths, options.model);
  checkDepths(depths);
  checkWholeNumber("samples", count, longContextLimits.samples);
  // Seeds of samples lie behind one another, far from those of other seeds.
  const base = Rng.fromSeed(seed).integer(2 ** 52);
  const samples: GenerationSample[] = [];
  const places: Place[] = [];
  for (const length of options.lengths) {
    for (let i = 0; i < count; i++) {
      const made = maker(Rng.fromSeed(base + length * longContextLimits.samples + i));
      const parts = new PartSource(made, tokenizer);
      for (const depth of depths) {
        const { answer, prompt, keywords } = fill(made, parts, { length, depth, tokenizer, chat, name });
        const line = samples.length + 1;
        samples.push({ line, prompt, answer, ...(keywords && { keywords }) });
        places.push({ length, depth });
      }
    }
  }
  return { task: { name, form: "generation", samples }, metric, places };
}

/** Parts of a prompt, made once, with the tokens that each has by itself. */
class PartSource {
  readonly #maker: SampleMaker;
  readonly #tokenizer: Tokenizer;
  readonly #parts: string[] = [];
  readonly #tokens: number[] = [];

  constructor(maker: SampleMaker, tokenizer: Tokenizer) {
    this.#maker = maker;
    this.#tokenizer = tokenizer;
  }

  first(count: number): string[] {
    while (this.#parts.length < count) this.#make();
    return this.#parts.slice(0, count);
  }

  /** How many parts behind the first `count` have about `room` tokens together. */
  countFor(room: number, count: number): number {
    let sum = 0;
    for (let i = count; ; i++) {
      if (i === this.#parts.length) this.#make();
      sum += this.#tokens[i] as number;
      if (sum > room) return i - count;
    }
  }

  /** How many of the first `count` parts to leave out, the last first, to save about `excess` tokens. */
  countOff(excess: number, count: number): number {
    let sum = 0;
    let i = count;
    while (i > 1 && sum < excess) sum += this.#tokens[--i] as number;
    return count - i;
  }

  #make(): void {
    const part = this.#maker.part(this.#parts.length);
    this.#parts.push(part);
    // What the vocabulary cannot express still moves on.
    this.#tokens.push(Math.max(1, this.#tokenizer.encode(part, { special: false }).length));
  }
}

interface FillRequest extends Place {
  readonly tokenizer: Tokenizer;
  readonly chat: boolean;
  readonly name: string;
}

/** Finds the largest number of parts with which prompt and answer have at most `length` tokens. */
function fill(maker: SampleMaker, source: PartSource, request: FillRequest) {
  const { length, depth, tokenizer, chat, name } = request;
  const made = (count: number) => {
    const asked = maker.ask(source.first(count), depth);
    const prompt = asked.prompt(asked.parts);
    const encoded = encodePrompt(prompt, { tokenizer, chat });
    const answer = encoded.continueWith(chat ? asked.answer.trimStart() : asked.answer);
    return { ...asked, prompt, count, tokens: encoded.ids.length + answer.length };
  };
  let now = made(1);
  if (now.tokens > length) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `a length of ${length} tokens is too short for the task ${name}, whose shortest prompt and answer have ${now.tokens}`,
      { hint: `give lengths of at least ${4 * now.tokens}`, details: { length, least: now.tokens } },
    );
  }
  // Tokens merge differently beside others, so the guess is corrected upwards, then downwards.
  for (;;) {
    const more = source.countFor(length - now.tokens, now.count);
    if (more < 1) break;
    now = made(now.count + more);
  }
  while (now.tokens > length) now = made(now.count - source.countOff(now.tokens - length, now.count));
  return now;
}

/** @throws COPPICE_USAGE, COPPICE_TASK_TOO_LONG */
export function checkLengths(
  lengths: readonly number[],
  { contextLength }: Pick<MoeModel, "contextLength">,
): void {
  if (lengths.length === 0 || lengths.length > longContextLimits.places) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `there are ${lengths.length} lengths, expected 1 to ${longContextLimits.places}`,
    );
  }
  for (const length of lengths) {
    checkWholeNumber("length", length);
    if (length <= contextLength) continue;
    throw new CoppiceError(
      "COPPICE_TASK_TOO_LONG",
      `the length ${length} is beyond the model's context of ${contextLength} tokens`,
      { hint: `give lengths of at most ${contextLength}`, details: { length, context: contextLength } },
    );
  }
}

function checkDepths(depths: readonly number[]): void {
  if (depths.length === 0 || depths.length > longContextLimits.places) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `there are ${depths.length} depths, expected 1 to ${longContextLimits.places}`,
    );
  }
  const wrong = depths.find((depth) => !(depth >= 0 && depth <= 1));
  if (wrong !== undefined) {
    throw new CoppiceError("COPPICE_USAGE", `the depth is ${wrong}, expected a number from 0 to 1`);
  }
}

/** The index of `count` places that a depth means. */
export function indexAt(depth: number, count: number): number {
  return Math.round(depth * (count - 1));
}

/** A score over the samples of one length, or of one length and depth. */
export interface PlaceScore extends Interval {
  readonly length: number;
  /** Absent: all depths. */
  readonly depth?: number;
  readonly samples: number;
}

/**
 * The scores of a long-context task by length and depth, with 95 % intervals.
 * @param score of that task, with its metric
 */
export function scoresByPlace(
  { scores, metric }: Pick<TaskScore, "scores" | "metric">,
  places: readonly Place[],
): { readonly cells: PlaceScore[]; readonly lengths: PlaceScore[] } {
  if (scores.length !== places.length) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `there are ${scores.length} scores for ${places.length} places, expected one per sample`,
    );
  }
  const interval = (chosen: readonly number[]): Interval & { samples: number } => {
    const values = chosen.map((i) => scores[i] as number);
    const right = values.reduce((sum, value) => sum + value, 0);
    const found = metrics[metric].binary ? wilsonInterval(right, values.length) : bootstrapMean(values);
    return { ...found, samples: values.length };
  };
  const group = (key: (place: Place) => string) => {
    const groups = new Map<string, number[]>();
    places.forEach((place, i) => {
      const name = key(place);
      groups.set(name, [...(groups.get(name) ?? []), i]);
    });
    return [...groups.values()];
  };
  const at = (i: number | undefined) => places[i as number] as Place;
  return {
    cells: group(({ length, depth }) => `${length} ${depth}`).map((chosen) => ({
      ...at(chosen[0]),
      ...interval(chosen),
    })),
    lengths: group(({ length }) => `${length}`).map((chosen) => ({
      length: at(chosen[0]).length,
      ...interval(chosen),
    })),
  };
}
