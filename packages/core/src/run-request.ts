import type { AttentionCapabilities, LayerRange, LoadRequest, Runner, RunRequest } from "./backend.js";
import { CoppiceError } from "./errors.js";
import type { MoeModel } from "./model.js";
import { type CheckedAttention, checkRunAttention } from "./run-attention.js";
import { checkDrawRule, type TokenDraw } from "./token-draw.js";

/** A run request whose every number has been checked, with the packed rows worked out. */
export interface CheckedRunRequest {
  /** T, the tokens of all sequences together. */
  readonly tokens: number;
  /** First packed row of every sequence, and T at the end: sequence s is rows `starts[s]` to `starts[s + 1]`. */
  readonly starts: Int32Array;
  readonly from: number;
  readonly to: number;
  /** [R] packed rows where logits are wanted; absent when the request names no positions. */
  readonly rows?: Int32Array;
  /** [R] */
  readonly targets?: Int32Array;
  /** Of a run without a cache. */
  readonly attention?: CheckedAttention;
}

/**
 * The layers that a runner is to make ready.
 * @throws COPPICE_USAGE
 */
export function checkLoadRange({ model, layers }: Pick<LoadRequest, "model" | "layers">): LayerRange {
  const count = model.layers.length;
  const { from, to } = layers ?? { from: 0, to: count };
  if (Number.isInteger(from) && Number.isInteger(to) && from >= 0 && from < to && to <= count)
    return { from, to };
  throw new CoppiceError(
    "COPPICE_USAGE",
    `layers from ${from} to ${to} are to be loaded; give 0 <= from < to <= ${count}`,
  );
}

/**
 * Checks a request before any work, so that every backend refuses the same requests with the same words. The plan
 * is only checked to belong to the model; `parsePlan` checks the rest where it enters the program.
 * @param loaded layers that the runner has; default all
 * @param known what the backend may limit attention by; default nothing
 * @param runner what it can besides; default nothing
 * @throws COPPICE_USAGE, COPPICE_PLAN_MODEL, and what `checkRunAttention` does
 */
export function checkRunRequest(
  model: MoeModel,
  request: RunRequest,
  loaded?: LayerRange,
  known?: AttentionCapabilities,
  runner: Pick<Runner, "pace" | "draws"> = {},
): CheckedRunRequest {
  const {
    sequences,
    hidden,
    held,
    boundaries = [],
    hold = [],
    positions,
    targets,
    draw,
    cache,
    plan,
    tap,
    memory,
  } = request;
  const layers = model.layers.length;
  const { from = 0, to = layers } = request;
  if (plan && plan.model.fingerprint !== model.fingerprint) {
    throw new CoppiceError(
      "COPPICE_PLAN_MODEL",
      `the plan was made for a model with fingerprint "${plan.model.fingerprint}"; ` +
        `the loaded model has "${model.fingerprint}"`,
    );
  }
  const starts = packedStarts(sequences, model.vocabSize);
  const tokens = starts[sequences.length] as number;
  if (!Number.isInteger(from) || !Number.isInteger(to) || from < 0 || from >= to || to > layers) {
    throw refused(`layers from ${from} to ${to} are wanted; give 0 <= from < to <= ${layers}`);
  }
  if (loaded && (from < loaded.from || to > loaded.to)) {
    throw refused(
      `layers from ${from} to ${to} are wanted; the runner was loaded with those from ${loaded.from} to ${loaded.to}`,
    );
  }
  if (!runner.pace && (held || hold.length > 0)) {
    throw refused("boundaries are to be held by the runner, which has no pace and returns them only");
  }
  if (hidden && held) throw refused("both hidden and held are given for the first layer");
  if (from > 0 !== ((hidden ?? held) !== undefined)) {
    throw refused(
      from > 0
        ? `from is ${from} but hidden, that layer's input, is missing`
        : `${held ? "held" : "hidden"} is given but from is 0`,
    );
  }
  if (hidden && hidden.length !== tokens * model.hiddenSize) {
    throw refused(`hidden has ${hidden.length} values, expected ${tokens} x ${model.hiddenSize}`);
  }
  for (const layer of [...boundaries, ...hold]) {
    if (!Number.isInteger(layer) || layer <= from || layer > to) {
      throw refused(`boundary ${layer} is outside the layers that run; expected ${from + 1} to ${to}`);
    }
  }
  if (tap?.every && tap.every.length !== tokens) {
    throw refused(`the tap's mask has ${tap.every.length} values for ${tokens} tokens`);
  }
  if (memory && (tap || cache)) {
    throw refused(`a memory of layer ${from} is given together with a ${tap ? "tap" : "cache"}`);
  }
  if (cache) {
    if (from !== 0 || to !== layers)
      throw refused(`a cache needs all ${layers} layers, not ${from} to ${to}`);
    if (cache.lengths.length !== sequences.length) {
      throw refused(`the cache holds ${cache.lengths.length} sequences, the request ${sequences.length}`);
    }
  }
  if (cache && request.attention) {
    throw refused(
      "attention is given together with a cache, which has the attention that it was created with",
    );
  }
  const lengths = sequences.map(({ length }) => length);
  const attention = request.attention && checkRunAttention(model, request.attention, lengths, known);
  const checked = { tokens, starts, from, to, ...(attention && { attention }) };
  if (draw && !runner.draws) throw refused("tokens are to be drawn by the runner, which has no draws");
  if (!positions) {
    if (targets ?? draw) throw refused(`${targets ? "targets are" : "a draw is"} given without positions`);
    return checked;
  }
  if (to !== layers) throw refused(`positions are given, but logits need layers up to ${layers}, not ${to}`);
  const rows = packedRows(positions, sequences, starts);
  if (draw) checkDraw(draw, rows.length, model.vocabSize);
  if (!targets) return { ...checked, rows };
  if (draw) throw refused("both targets and a draw are given");
  return { ...checked, rows, targets: packedTargets(targets, positions, model.vocabSize) };
}

function packedStarts(sequences: readonly Int32Array[], vocabSize: number): Int32Array {
  if (sequences.length === 0) throw refused("the batch has no sequence; give at least one");
  const starts = new Int32Array(sequences.length + 1);
  sequences.forEach((sequence, s) => {
    if (sequence.length === 0) throw refused(`sequence ${s} is empty; give at least one token`);
    checkTokens(sequence, vocabSize, `sequence ${s}`);
    starts[s + 1] = (starts[s] as number) + sequence.length;
  });
  return starts;
}

function packedRows(
  positions: readonly Int32Array[],
  sequences: readonly Int32Array[],
  starts: Int32Array,
): Int32Array {
  if (positions.length !== sequences.length) {
    throw refused(`positions are given for ${positions.length} sequences, the batch has ${sequences.length}`);
  }
  const rows = new Int32Array(positions.reduce((sum, { length }) => sum + length, 0));
  let row = 0;
  positions.forEach((wanted, s) => {
    let previous = -1;
    for (const position of wanted) {
      const length = (sequences[s] as Int32Array).length;
      if (position < previous || position >= length) {
        throw refused(
          `position ${position} follows ${previous} in sequence ${s} of ${length} tokens; ` +
            `give positions of 0 to ${length - 1} that do not descend`,
        );
      }
      previous = position;
      rows[row++] = (starts[s] as number) + position;
    }
  });
  return rows;
}

function packedTargets(
  targets: readonly Int32Array[],
  positions: readonly Int32Array[],
  vocabSize: number,
): Int32Array {
  if (targets.length !== positions.length) {
    throw refused(`targets are given for ${targets.length} sequences, positions for ${positions.length}`);
  }
  const packed = new Int32Array(targets.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  targets.forEach((tokens, s) => {
    const wanted = (positions[s] as Int32Array).length;
    if (tokens.length !== wanted) {
      throw refused(`sequence ${s} has ${tokens.length} targets for ${wanted} positions`);
    }
    checkTokens(tokens, vocabSize, `targets of sequence ${s}`);
    packed.set(tokens, at);
    at += tokens.length;
  });
  return packed;
}

function checkDraw({ rule, uniforms, seen }: TokenDraw, rows: number, vocabSize: number): void {
  checkDrawRule(rule);
  if (uniforms.length !== rows) {
    throw refused(`${uniforms.length} random numbers are given to draw ${rows} tokens with`);
  }
  const wrong = uniforms.find((uniform) => !(uniform >= 0 && uniform < 1));
  if (wrong !== undefined) throw refused(`a token is to be drawn with ${wrong}; give numbers of [0, 1)`);
  if (!seen) return;
  if (seen.length !== rows) throw refused(`seen tokens are given for ${seen.length} rows, ${rows} are drawn`);
  seen.forEach((tokens, row) => {
    checkTokens(tokens, vocabSize, `the seen tokens of row ${row}`);
  });
}

function checkTokens(tokens: Int32Array, vocabSize: number, where: string): void {
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i] as number;
    if (token < 0 || token >= vocabSize) {
      throw refused(`${where} has token ${token} at ${i}; the vocabulary is 0 to ${vocabSize - 1}`);
    }
  }
}

function refused(message: string): CoppiceError {
  return new CoppiceError("COPPICE_USAGE", `not a usable run request: ${message}`);
}
