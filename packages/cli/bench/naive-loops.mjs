// What a search costs without an engine: every sample of every plan through all layers, nothing reused.
import { partBatches } from "@coppice/evaluate";

/** Watching every layer makes the backend compute equal beginnings anew, and all tokens of the last layer. */
const watcher = { fields: [], onLayer() {} };

/**
 * One forward pass per batch with the answers given. Batches are those of the engine, sorted by length, so that any
 * difference in the scores is not one of company.
 * @returns likelihood and correctness per sample, and the work done
 */
export async function scoreTeacherForced(runner, task, plan) {
  const scores = new Float64Array(task.samples.length);
  const correct = new Uint8Array(task.samples.length);
  const work = { tokenLayers: 0, expertTokens: 0 };
  for (const { samples, sequences } of partBatches(task).flat()) {
    // The end of an answer is any of several tokens: one more target each at the last position.
    const more = task.endTokens.slice(1);
    const positions = sequences.map((sequence) =>
      Int32Array.of(...sequence.positions, ...more.map(() => sequence.positions.at(-1))),
    );
    const targets = sequences.map((sequence) => Int32Array.of(...sequence.targets, ...more));
    const ids = sequences.map((sequence) => sequence.ids);
    const result = await runner.run({ sequences: ids, positions, targets, plan, tap: watcher });
    work.tokenLayers += result.tokenLayers;
    work.expertTokens += result.expertTokens;
    let row = 0;
    for (const [i, sample] of samples.entries()) {
      const expected = sequences[i].targets;
      const last = expected.length - 1;
      const end = row + positions[i].length;
      const before = result.targetLogProbs.subarray(row, row + last).reduce((sum, value) => sum + value, 0);
      const ends = Math.max(...result.targetLogProbs.subarray(row + last, end));
      const all = result.targetLogProbs
        .subarray(row + last, end)
        .reduce((sum, value) => sum + Math.exp(value - ends), 0);
      scores[sample] = Math.exp(before + (ends + Math.log(all)));
      const written = result.argmax.subarray(row, row + last + 1);
      correct[sample] = Number(isRight(written, expected, task));
      row = end;
    }
  }
  return { scores, correct, work };
}

/** Samples whose answers are written side by side. */
const together = 32;

/**
 * Writes every answer greedily, token by token with cached keys and values, a batch until its last answer ends, as
 * batched generation does.
 * @returns correctness per sample, and the work that this takes
 */
export async function generateAnswers(runner, task, plan) {
  const correct = new Uint8Array(task.samples.length);
  const layers = runner.model.layers.length;
  const most = Math.max(...task.samples.map(({ sequences: [sequence] }) => sequence.targets.length));
  const work = { tokenLayers: 0, expertTokens: 0 };
  for (let from = 0; from < task.samples.length; from += together) {
    const batch = task.samples.slice(from, from + together);
    const cache = runner.createCache(batch.length);
    const written = batch.map(() => []);
    let inputs = batch.map(({ sequences: [sequence], promptTokens }) =>
      sequence.ids.subarray(0, promptTokens),
    );
    const isOpen = (tokens) => tokens.length < most && !task.ending.has(tokens.at(-1));
    while (written.some(isOpen)) {
      const { argmax, expertTokens } = await runner.run({
        sequences: inputs,
        positions: inputs.map(({ length }) => Int32Array.of(length - 1)),
        targets: inputs.map(() => Int32Array.of(0)),
        plan,
        cache,
      });
      work.tokenLayers += inputs.reduce((sum, { length }) => sum + length, 0) * layers;
      work.expertTokens += expertTokens;
      inputs = batch.map((_, i) => {
        if (isOpen(written[i])) written[i].push(argmax[i]);
        return Int32Array.of(argmax[i]);
      });
    }
    cache.dispose();
    for (const [i, { sequences }] of batch.entries()) {
      correct[from + i] = Number(isRight(written[i], sequences[0].targets, task));
    }
  }
  return { correct, work };
}

/** Every token is the expected one, and the answer ends behind them. */
function isRight(written, expected, { ending }) {
  const last = expected.length - 1;
  return expected.subarray(0, last).every((token, i) => written[i] === token) && ending.has(written[last]);
}
