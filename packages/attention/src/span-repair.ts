import { answerOf, fits, type PreparedProgram, type SpanAnswer, shareTolerance } from "./span-program.js";
import { layerColumns, leastOf, pricedLosses, setValue } from "./span-relaxation.js";

/** Another rule, of its layer's set, for one head. */
interface Move {
  readonly head: number;
  readonly rule: number;
  readonly loss: number;
  /** Change with prices. */
  readonly priced: number;
}

/** Moves that are tried in twos: pairs grow with the square. */
const pairedMoves = 500;
const passLimit = 40;

/** Changes a choice step by step; what is taken and lost is kept along. */
class Editor {
  readonly choice: Int32Array;
  readonly sets: Int32Array;
  readonly taken: Float64Array;
  loss: number;
  readonly #program: PreparedProgram;

  constructor(program: PreparedProgram, { choice, sets, taken, loss }: SpanAnswer) {
    this.#program = program;
    this.choice = choice.slice();
    this.sets = sets.slice();
    this.taken = taken.slice();
    this.loss = loss;
  }

  set(head: number, rule: number): void {
    const { rules, budgetCount, losses } = this.#program;
    const old = this.choice[head] as number;
    this.loss += (losses[head * rules + rule] as number) - (losses[head * rules + old] as number);
    for (let k = 0; k < budgetCount; k++) this.taken[k] = (this.taken[k] as number) + this.more(old, rule, k);
    this.choice[head] = rule;
  }

  /** What rule `to` takes more of a budget than rule `from`. */
  more(from: number, to: number, k: number): number {
    const { budgetCount, shares } = this.#program;
    return (shares[to * budgetCount + k] as number) - (shares[from * budgetCount + k] as number);
  }

  fitsWith(...moves: readonly Move[]): boolean {
    for (let k = 0; k < this.taken.length; k++) {
      let sum = this.taken[k] as number;
      for (const { head, rule } of moves) sum += this.more(this.choice[head] as number, rule, k);
      if (sum > 1 + shareTolerance) return false;
    }
    return true;
  }

  moves(priced: Float64Array): Move[] {
    const { rules, losses, starts, sets } = this.#program;
    const moves: Move[] = [];
    for (let layer = 0; layer + 1 < starts.length; layer++) {
      const set = sets[this.sets[layer] as number] as readonly number[];
      for (let head = starts[layer] as number; head < (starts[layer + 1] as number); head++) {
        const [row, old] = [head * rules, this.choice[head] as number];
        for (const rule of set) {
          if (rule === old) continue;
          const loss = (losses[row + rule] as number) - (losses[row + old] as number);
          moves.push({
            head,
            rule,
            loss,
            priced: (priced[row + rule] as number) - (priced[row + old] as number),
          });
        }
      }
    }
    return moves;
  }

  answer(): SpanAnswer {
    return answerOf(this.#program, this.choice, this.sets);
  }
}

/**
 * Makes a choice fit by other rules for single heads, within the sets that their layers have: those first that cost least
 * per share that they free of what is over.
 * @returns undefined when the sets do not let it
 */
export function repair(program: PreparedProgram, from: SpanAnswer): SpanAnswer | undefined {
  const editor = new Editor(program, from);
  for (let round = 0; round < passLimit; round++) {
    if (fits(editor.taken)) return editor.answer();
    const moves = freeingMoves(program, editor);
    if (moves.length === 0) return undefined;
    for (const { head, rule } of moves) {
      if (fits(editor.taken)) break;
      if (freedBy(editor, head, rule) > shareTolerance) editor.set(head, rule);
    }
  }
  return undefined;
}

/** For every head the rule that costs least per share that it frees, the cheapest first. */
function freeingMoves({ rules, losses, starts, sets }: PreparedProgram, editor: Editor) {
  const moves: { head: number; rule: number; rate: number }[] = [];
  for (let layer = 0; layer + 1 < starts.length; layer++) {
    const set = sets[editor.sets[layer] as number] as readonly number[];
    for (let head = starts[layer] as number; head < (starts[layer + 1] as number); head++) {
      const own = losses[head * rules + (editor.choice[head] as number)] as number;
      let [best, least] = [-1, Number.POSITIVE_INFINITY];
      for (const rule of set) {
        const freed = freedBy(editor, head, rule);
        if (freed <= shareTolerance) continue;
        const more = (losses[head * rules + rule] as number) - own;
        const rate = more > 0 ? more / freed : more * freed;
        if (rate < least) [best, least] = [rule, rate];
      }
      if (best >= 0) moves.push({ head, rule: best, rate: least });
    }
  }
  return moves.sort((x, y) => x.rate - y.rate);
}

/** Shares that another rule frees of the budgets that are over, less what it takes of others that they have not. */
function freedBy(editor: Editor, head: number, rule: number): number {
  const old = editor.choice[head] as number;
  let freed = 0;
  for (let k = 0; k < editor.taken.length; k++) {
    const [over, less] = [(editor.taken[k] as number) - 1, -editor.more(old, rule, k)];
    // Freeing more than what is over is of no use.
    freed += over > 0 ? Math.min(less, over) : Math.min(0, less - over);
  }
  return freed;
}

/**
 * Lowers the loss of a choice that fits: single heads, two heads at a time (one takes what the other frees), and whole
 * layers with another set of rules, until nothing helps.
 */
export function improve(program: PreparedProgram, from: SpanAnswer, prices: Float64Array): SpanAnswer {
  const editor = new Editor(program, from);
  const priced = pricedLosses(program, prices);
  for (let pass = 0; pass < passLimit; pass++) {
    const before = editor.loss;
    singleMoves(editor, priced);
    pairMoves(editor, priced);
    layerMoves(program, editor, priced, prices);
    if (!(editor.loss < before - 1e-12 * Math.abs(before))) break;
  }
  return editor.answer();
}

function singleMoves(editor: Editor, priced: Float64Array): void {
  const moves = editor.moves(priced).filter(({ loss }) => loss < 0);
  moves.sort((a, b) => a.loss - b.loss);
  const moved = new Set<number>();
  for (const move of moves) {
    if (moved.has(move.head) || !editor.fitsWith(move)) continue;
    editor.set(move.head, move.rule);
    moved.add(move.head);
  }
}

function pairMoves(editor: Editor, priced: Float64Array): void {
  // At good prices the moves of a better choice change the priced loss least.
  const moves = editor
    .moves(priced)
    .sort((a, b) => a.priced - b.priced)
    .slice(0, pairedMoves);
  const moved = new Set<number>();
  for (const up of moves) {
    if (up.loss >= 0 || moved.has(up.head)) continue;
    let best: Move | undefined;
    for (const down of moves) {
      if (down.head === up.head || moved.has(down.head) || up.loss + down.loss >= 0) continue;
      if ((!best || down.loss < best.loss) && editor.fitsWith(up, down)) best = down;
    }
    if (!best) continue;
    for (const move of [up, best]) {
      editor.set(move.head, move.rule);
      moved.add(move.head);
    }
  }
}

/** Tries other sets of rules for a layer, with what the other layers leave of the budgets. */
function layerMoves(
  program: PreparedProgram,
  editor: Editor,
  priced: Float64Array,
  prices: Float64Array,
): void {
  const { rules, budgetCount, losses, shares, starts, sets } = program;
  if (sets.length === 1) return;
  for (let layer = 0; layer + 1 < starts.length; layer++) {
    const [from, to] = [starts[layer] as number, starts[layer + 1] as number];
    const room = Float64Array.from(editor.taken, (share) => 1 - share);
    let own = 0;
    for (let head = from; head < to; head++) {
      const rule = editor.choice[head] as number;
      own += losses[head * rules + rule] as number;
      for (let k = 0; k < budgetCount; k++)
        room[k] = (room[k] as number) + (shares[rule * budgetCount + k] as number);
    }
    const priceOfRoom = room.reduce((sum, share, k) => sum + share * (prices[k] as number), 0);
    // No choice of the set within the room loses less than this.
    const columns = layerColumns(program, priced, layer);
    const promising = sets
      .map((set, s) => ({ s, least: setValue(columns, rules, set) - priceOfRoom }))
      .filter(({ least }) => least < own - 1e-12 * Math.abs(own))
      .sort((a, b) => a.least - b.least)
      .slice(0, 60);
    const heads = to - from;
    const alone: PreparedProgram = {
      ...program,
      heads,
      starts: [0, heads],
      losses: losses.subarray(from * rules, to * rules),
      shares: shares.map((share, i) =>
        (room[i % budgetCount] as number) > 0
          ? share / (room[i % budgetCount] as number)
          : share === 0
            ? 0
            : 2,
      ),
    };
    let best: SpanAnswer | undefined;
    for (const { s } of promising) {
      const set = sets[s] as readonly number[];
      const choice = Int32Array.from({ length: heads }, (_, h) => leastOf(priced, (from + h) * rules, set));
      const repaired = repair(alone, answerOf(alone, choice, Int32Array.of(s)));
      if (!repaired) continue;
      const inner = new Editor(alone, repaired);
      singleMoves(inner, alone.losses);
      if (inner.loss < (best?.loss ?? own - 1e-12 * Math.abs(own))) best = inner.answer();
    }
    if (!best) continue;
    editor.sets[layer] = best.sets[0] as number;
    best.choice.forEach((rule, h) => {
      editor.set(from + h, rule);
    });
  }
}
