import { CoppiceError } from "@coppice/core";
import { checkIds, concat, encodePrompt } from "./encode-prompt.js";
import type { EncodedSample, EncodeOptions } from "./encode-task.js";
import type { Task, TextTask } from "./task.js";

/** Most tokens of a window, the length that most published perplexities use. */
export const defaultWindow = 2_048;

/**
 * Cuts texts into windows of consecutive tokens, each headed by the special tokens that the tokenizer puts before a
 * text. Every token that follows another is scored. Windows do not overlap; a rest of one token is left out.
 * @throws COPPICE_TASK_EMPTY when not one window of two tokens results
 */
export function encodeTextTask(task: TextTask, options: EncodeOptions): EncodedSample[] {
  const { tokenizer, model, limit = Number.POSITIVE_INFINITY } = options;
  const window = Math.min(options.window ?? defaultWindow, model.contextLength);
  if (!Number.isSafeInteger(window) || window < 2) {
    throw new CoppiceError("COPPICE_USAGE", `the window is ${window} tokens, expected at least 2`);
  }
  const prefix = tokenizer.encode("");
  const room = Math.max(1, window - prefix.length);
  const samples: EncodedSample[] = [];
  for (const { text, line } of task.samples) {
    if (samples.length >= limit) break;
    const ids = tokenizer.encode(text, { special: false });
    checkIds(ids, model);
    for (let begin = 0; begin < ids.length && samples.length < limit; begin += room) {
      const part = ids.subarray(begin, begin + room);
      const sequence = concat(prefix, part);
      // The first token of all has nothing before it; special tokens are given, not predicted.
      const first = Math.max(1, prefix.length);
      if (sequence.length <= first) continue;
      const count = sequence.length - first;
      samples.push({
        line,
        sequences: [
          {
            ids: sequence.slice(0, -1),
            positions: Int32Array.from({ length: count }, (_, i) => first - 1 + i),
            targets: sequence.slice(first),
          },
        ],
        promptTokens: 0,
      });
    }
  }
  if (samples.length === 0) {
    throw new CoppiceError("COPPICE_TASK_EMPTY", `${task.name} holds no text of two tokens or more`);
  }
  return samples;
}

/**
 * The samples as plain token sequences, for calibration: prompts followed by their (right) answers, and texts in
 * windows. Sequences longer than the context are cut, since no score depends on them.
 * @param options as for `encodeTask`; `promptsOnly` leaves the answers out
 */
export function calibrationSequences(
  task: Task,
  options: EncodeOptions & { readonly promptsOnly?: boolean },
): Int32Array[] {
  if (task.form === "text") {
    return encodeTextTask(task, options).map(({ sequences }) => {
      const { ids, targets } = sequences[0] as EncodedSample["sequences"][number];
      return concat(ids, targets.subarray(-1));
    });
  }
  const samples = task.samples.slice(0, options.limit);
  return samples.map((sample) => {
    const prompt = encodePrompt(sample.prompt, options);
    const text = "choices" in sample ? (sample.choices[sample.answer] as string) : sample.answer.trimEnd();
    const answer = options.promptsOnly ? [] : prompt.continueWith(options.chat ? text.trimStart() : text);
    const ids = concat(prompt.ids, answer).slice(0, options.model.contextLength);
    checkIds(ids, options.model);
    return ids;
  });
}
