import type { Tokenizer } from "./tokenizer.js";

/** Turns tokens into text as they come. */
export interface TextStream {
  /** Everything given out so far. */
  readonly text: string;
  /** True once a stop string was met; the text ends before it. */
  readonly stopped: boolean;
  /** Text that this token completes. */
  push(token: number): string;
  /** Text held back so far; call once at the end. */
  finish(): string;
}

/**
 * Gives text out as soon as later tokens cannot change it: a character of several bytes when its last byte is
 * there, and what may be the begin of a stop string when it proves to be none. Only tokens since the last complete
 * character are decoded again, so long texts cost no more per token than short ones.
 */
export function createTextStream(tokenizer: Tokenizer, stop: readonly string[]): TextStream {
  const tokens: number[] = [];
  // Text of tokens[anchor..read) was taken over already; it is decoded along because the text of a token may
  // depend on what stands before it (leading spaces).
  let anchor = 0;
  let read = 0;
  let pending = "";
  let text = "";
  let stopped = false;
  /** Texts of single tokens, which most decoding is of. */
  const alone = new Map<number, string>();

  const decode = (from: number, to: number): string => {
    if (to - from !== 1) return tokenizer.decode(tokens.slice(from, to));
    const token = tokens[from] as number;
    const known = alone.get(token) ?? tokenizer.decode([token]);
    alone.set(token, known);
    return known;
  };

  const take = (more: string, last: boolean): string => {
    pending += more;
    let end = pending.length;
    for (const string of stop) {
      const at = pending.indexOf(string);
      if (at >= 0 && at <= end) {
        end = at;
        stopped = true;
      }
    }
    if (!stopped && !last) end -= longestBegin(pending, stop);
    const out = pending.slice(0, end);
    pending = stopped ? "" : pending.slice(end);
    text += out;
    return out;
  };

  return {
    get text() {
      return text;
    },
    get stopped() {
      return stopped;
    },
    push(token) {
      if (stopped) return "";
      tokens.push(token);
      const before = decode(anchor, read);
      const now = decode(anchor, tokens.length);
      if (now.length <= before.length || now.endsWith("\ufffd")) return "";
      anchor = read;
      read = tokens.length;
      return take(now.slice(before.length), false);
    },
    finish() {
      if (stopped) return "";
      const before = decode(anchor, read);
      const now = decode(anchor, tokens.length);
      read = tokens.length;
      anchor = read;
      return take(now.slice(before.length), true);
    },
  };
}

/** Length of the longest end of `text` that begins one of `strings`. */
function longestBegin(text: string, strings: readonly string[]): number {
  let longest = 0;
  for (const string of strings) {
    for (let length = Math.min(string.length - 1, text.length); length > longest; length--) {
      if (string.startsWith(text.slice(-length))) longest = length;
    }
  }
  return longest;
}
