import type { EncodedTask } from "./encode-task.js";

/** When a text in the form of a task's samples is over. Plain data. */
export interface TextEnds {
  readonly endOfText: ReadonlySet<number>;
  /** End-of-text tokens that every prompt has in itself, as chat templates put between turns. */
  readonly ends: number;
  /** Tokens that are a line break; none for text, which goes on behind one. */
  readonly lineBreaks: ReadonlySet<number>;
  /** Line breaks that every prompt has in itself. */
  readonly breaks: number;
  /** The tokens that all prompts end with, such as `Answer:`; may be none. */
  readonly cue: Int32Array;
}

/** Reads from the prompts of a task when a text like them is over. */
export function textEnds({ form, samples, endOfText, ending }: EncodedTask): TextEnds {
  const lineBreaks = new Set(form === "text" ? [] : [...ending].filter((token) => !endOfText.has(token)));
  const prompts = samples.map(({ sequences, promptTokens }) => sequences[0]?.ids.subarray(0, promptTokens));
  const [first = new Int32Array(0)] = prompts;
  let [ends, breaks, cue] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, first.length];
  for (const prompt of prompts) {
    if (!prompt) continue;
    ends = Math.min(ends, count(prompt, endOfText));
    breaks = Math.min(breaks, count(prompt, lineBreaks));
    let same = 0;
    while (same < cue && same < prompt.length && prompt.at(-1 - same) === first.at(-1 - same)) same++;
    cue = same;
  }
  return { endOfText, ends, lineBreaks, breaks, cue: first.slice(first.length - cue) };
}

/**
 * Watches a text, token by token.
 *
 * End-of-text ends it, unless the text has fewer of these tokens so far than any prompt. A line break ends it behind an
 * answer only: after the words that all prompts end with, and no fewer line breaks before these than any prompt has.
 */
export class TextEnd {
  readonly #like: TextEnds;
  /** The last tokens, as many as the cue has. */
  readonly #last: number[] = [];
  #ends = 0;
  #breaks = 0;
  #answering = false;

  constructor(like: TextEnds) {
    this.#like = like;
    this.#look();
  }

  /** @returns true when the text ends with this token */
  push(token: number): boolean {
    const { endOfText, ends, lineBreaks, cue } = this.#like;
    if (endOfText.has(token) && this.#ends++ >= ends) return true;
    if (lineBreaks.has(token)) {
      if (this.#answering) return true;
      this.#breaks++;
    }
    this.#last.push(token);
    if (this.#last.length > cue.length) this.#last.shift();
    this.#look();
    return false;
  }

  #look(): void {
    const { breaks, cue } = this.#like;
    this.#answering ||= this.#breaks >= breaks && cue.every((token, i) => token === this.#last[i]);
  }
}

function count(tokens: Int32Array, among: ReadonlySet<number>): number {
  return tokens.reduce((sum, token) => sum + Number(among.has(token)), 0);
}
