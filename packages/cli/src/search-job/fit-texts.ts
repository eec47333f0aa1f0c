import { addWork, noWork, type WorkCounters } from "@coppice/core";
import { type EncodedSample, encodeTask, loadTokenizer } from "@coppice/evaluate";
import type { FitText } from "@coppice/reconstruct";
import type { SearchRun } from "./search-job.js";

/** Tokens that a fit takes: some ten for every hidden unit of small experts, and less than a minute of work. More brought nothing. */
const fitTokens = 24_576;
/** Samples with fewer tokens would be learned by heart: the model writes others like them. */
const enoughTokens = 16_384;
/** How much more a token counts behind which a part of the answer is expected. */
const answerWeight = 10;

/** What the projections of a plan are fitted to. */
export interface FitTexts {
  /** The search samples, one text each, or texts that the model wrote. */
  readonly by: "samples" | "written";
  readonly texts: readonly FitText[];
  /** What writing them took. */
  readonly work: WorkCounters;
}

/**
 * The search samples themselves where they are long, with weight on their answers; where they are short, or of several
 * tasks, what the model writes when it is shown how they begin. So samples that judge the fit have not been fitted to.
 */
export async function fitTexts({ job, pool, emitter, signal }: SearchRun): Promise<FitTexts> {
  const { model, folder } = job.opened.checkpoint;
  const { chat, tasks } = job;
  const [one] = tasks;
  if (one && tasks.length === 1) {
    const tokenizer = await loadTokenizer(folder);
    const { form, samples } = encodeTask(one.sets.search, { model, tokenizer, chat });
    const texts = samples.map((sample) => sampleText(sample));
    if (form === "text" || tokensOf(texts) >= enoughTokens) return { by: "samples", texts, work: noWork };
  }
  const texts: FitText[] = [];
  let work = noWork;
  for (const { sets } of tasks) {
    const tokens = Math.ceil(fitTokens / tasks.length);
    const request = { task: sets.search, chat, tokens, seed: job.seed, emitter, signal };
    const written = await pool.writeSamples(request);
    texts.push(...written.sequences.map((ids) => ({ ids })));
    work = addWork(work, written.work);
  }
  return { by: "written", texts, work };
}

/** As many of the first texts as a fit takes; at least one. */
export function limitTexts(texts: readonly FitText[]): readonly FitText[] {
  let tokens = 0;
  const end = texts.findIndex(({ ids }) => {
    tokens += ids.length;
    return tokens > fitTokens;
  });
  return end < 0 ? texts : texts.slice(0, Math.max(1, end));
}

export function tokensOf(texts: readonly FitText[]): number {
  return texts.reduce((sum, { ids }) => sum + ids.length, 0);
}

/** A sample with its right answer; for choices of several tokens that choice. */
function sampleText({ sequences, choices }: EncodedSample): FitText {
  const { ids, positions } = (sequences[choices?.right ?? 0] ??
    sequences[0]) as EncodedSample["sequences"][number];
  const weights = new Float32Array(ids.length).fill(1);
  // All of a plain text is expected.
  if (positions.length < ids.length - 1) for (const position of positions) weights[position] = answerWeight;
  return { ids, weights };
}
