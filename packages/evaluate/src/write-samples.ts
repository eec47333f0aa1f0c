import {
  addWork,
  checkWholeNumber,
  noWork,
  type RunEmitter,
  startProgress,
  type WorkCounters,
} from "@coppice/core";
import { type CachingRunner, continueBatch } from "./continue-batch.js";
import { countingRunner } from "./counting-runner.js";
import { concat } from "./encode-prompt.js";
import type { EncodedTask } from "./encode-task.js";
import { draftSamples, type SampleDraft } from "./sample-drafts.js";
import { checkSampling, Sampler } from "./sampling.js";
import { TextEnd, type TextEnds, textEnds } from "./text-end.js";

/** How many texts to write, and which. */
export interface WriteOptions {
  /** Texts are written until they have this many tokens together. Default 32,000. */
  readonly tokens?: number;
  /** Default 0. The same seed gives the same texts. */
  readonly seed?: number;
  /** Gets `progress` after every group of texts. */
  readonly emitter?: RunEmitter;
}

export interface WriteSamplesOptions extends WriteOptions {
  /** Of the whole model. Not disposed. */
  readonly runner: CachingRunner;
  /** Only begins of its prompts, or texts, are looked at, and the lengths of its samples. */
  readonly task: EncodedTask;
  readonly signal?: AbortSignal;
}

export interface WrittenSamples {
  /** Token ids of each text: the begin of a sample, what the model wrote behind it, and the token that ended it. */
  readonly sequences: Int32Array[];
  /** What writing took, texts that were left out included. */
  readonly work: WorkCounters;
}

/** Texts that are written side by side. Plain data. */
export interface DraftGroup {
  readonly drafts: readonly SampleDraft[];
  readonly ends: TextEnds;
}

const defaultTokens = 32_000;
/**
 * Most texts that one group may have, and most tokens of all of them: steps with many texts read weights less often, and
 * keys and values take memory for every token.
 */
const groupSize = { texts: 128, tokens: 8_192 };

/**
 * Texts in the domain of a task that the model itself writes: data to fit weights to without a look at the task's own
 * answers. Each begins like a prompt (`draftSamples`) and goes on with tokens drawn from the model's probabilities at
 * temperature 1, until it is over (`TextEnd`) or slightly longer than the sample whose begin it has. Data that a model
 * generates for its own compression: LLM-QAT, arXiv 2305.17888.
 *
 * Ends once the texts have the wanted number of tokens together, or when every sample has lent its begin ten times.
 * @throws COPPICE_USAGE, COPPICE_ABORTED, and what the runner throws
 */
export function writeSamples(options: WriteSamplesOptions): Promise<WrittenSamples> {
  const { runner, task, signal } = options;
  return gatherSamples(task, runner.model, options, async (groups, onWritten) => {
    const written: WrittenSamples[] = [];
    for (const group of groups) {
      written.push(await writeGroup(runner, group, signal));
      onWritten(written.at(-1) as WrittenSamples);
    }
    return written;
  });
}

/**
 * Plans groups of texts, has them written, and puts the texts in order. Groups depend on the task and what was written
 * before alone, so that the texts do not depend on who writes them.
 * @param write writes groups, in any order; tells of each that is done
 * @throws COPPICE_USAGE
 */
export async function gatherSamples(
  task: EncodedTask,
  { contextLength }: { readonly contextLength: number },
  options: WriteOptions,
  write: (
    groups: readonly DraftGroup[],
    onWritten: (written: WrittenSamples) => void,
  ) => Promise<readonly WrittenSamples[]>,
): Promise<WrittenSamples> {
  const { tokens: wanted = defaultTokens, seed = 0, emitter } = options;
  checkWholeNumber("tokens", wanted);
  checkSampling({ seed });
  const ends = textEnds(task);
  const drafts = draftSamples(task, contextLength, seed);
  const tell = startProgress(emitter, "writing samples", "tokens");
  let seen = 0;
  const onWritten = ({ sequences }: WrittenSamples) => {
    seen += total(sequences);
    tell(Math.min(seen, wanted), wanted);
  };
  const sequences: Int32Array[] = [];
  let work = noWork;
  let written = 0;
  let planned = 0;
  for (;;) {
    // Texts end before their limit more often than not; how much earlier is known once some are written.
    const share = planned > 0 ? written / planned : 1;
    const wave = take(drafts, (wanted - written) / share);
    if (wave.length === 0) break;
    const { order, groups } = groupsOf(wave, ends);
    const results = await write(groups, onWritten);
    const texts = results.flatMap((result) => result.sequences);
    const place = new Map(order.map((draft, i) => [draft, texts[i] as Int32Array]));
    sequences.push(...wave.map((draft) => place.get(draft) as Int32Array));
    for (const result of results) work = addWork(work, result.work);
    planned += wave.reduce((sum, { length }) => sum + length, 0);
    written = total(sequences);
  }
  // Texts beyond the wanted number are left out, so that how many are written at once makes no difference.
  let kept = 0;
  for (let sum = 0; kept < sequences.length && sum < wanted; kept++) sum += sequences[kept]?.length ?? 0;
  return { sequences: sequences.slice(0, kept), work };
}

/** Writes a group of texts, in its order. @throws COPPICE_ABORTED, and what the runner throws */
export async function writeGroup(
  runner: CachingRunner,
  { drafts, ends }: DraftGroup,
  signal?: AbortSignal,
): Promise<WrittenSamples> {
  const counting = countingRunner(runner);
  const texts = drafts.map(({ head, seed }) => {
    const end = new TextEnd(ends);
    for (const token of head) end.push(token);
    return { end, sampler: new Sampler({ temperature: 1, seed }, head) };
  });
  const written = await continueBatch(
    {
      ...counting,
      ...(runner.draws && { draws: true }),
      createCache: (sequences) => runner.createCache(sequences),
    },
    {
      prompts: drafts.map(({ head }) => head),
      maxTokens: drafts.map(({ head, length }) => length - head.length),
      samplers: texts.map(({ sampler }) => sampler),
      done: (s, tokens) => (texts[s] as (typeof texts)[number]).end.push(tokens.at(-1) as number),
      signal,
    },
  );
  const sequences = drafts.map(({ head }, s) => concat(head, written[s] as number[]));
  return { sequences, work: counting.work() };
}

/** The next drafts, until they have `tokens` at most. */
function take(drafts: Iterator<SampleDraft, undefined>, tokens: number): SampleDraft[] {
  const taken: SampleDraft[] = [];
  for (let sum = 0; sum < tokens; ) {
    const { value } = drafts.next();
    if (!value) break;
    taken.push(value);
    sum += value.length;
  }
  return taken;
}

/** Groups of texts of which about as much is left to write, so that they end together; the longest first. */
function groupsOf(wave: readonly SampleDraft[], ends: TextEnds) {
  const rest = ({ head, length }: SampleDraft) => length - head.length;
  const order = [...wave].sort((a, b) => rest(b) - rest(a));
  const groups: { drafts: SampleDraft[]; ends: TextEnds }[] = [];
  let tokens = 0;
  for (const draft of order) {
    const group = groups.at(-1);
    tokens += draft.length;
    if (group && group.drafts.length < groupSize.texts && tokens <= groupSize.tokens)
      group.drafts.push(draft);
    else {
      groups.push({ drafts: [draft], ends });
      tokens = draft.length;
    }
  }
  return { order, groups };
}

function total(sequences: readonly Int32Array[]): number {
  return sequences.reduce((sum, { length }) => sum + length, 0);
}
