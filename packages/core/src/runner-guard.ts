import type { RunAttention } from "./attention-plan.js";
import type { AttentionCapabilities, LayerRange, Runner, RunRequest } from "./backend.js";
import { CoppiceError, throwIfAborted } from "./errors.js";
import type { LayerPlan, Plan } from "./plan.js";
import { parsePlan } from "./plan-validate.js";
import { type CheckedAttention, checkRunAttention } from "./run-attention.js";
import { type CheckedRunRequest, checkRunRequest } from "./run-request.js";

/** What a runner made for its own runs: a cache, a memory. */
export interface Owned {
  /** The runner that made it. */
  readonly owner: object;
  /** Absent where it can be used again after its disposal. */
  readonly disposed?: boolean;
}

/**
 * What every backend refuses around its runs, with the same words: work after disposal, plans that are not valid, caches for no
 * sequence, of another runner or disposed. Keeps what the runner has loaded until it is disposed.
 */
export class RunnerGuard<L> {
  readonly #runner: Runner;
  readonly #range: LayerRange;
  readonly #known: AttentionCapabilities;
  /** Plans do not change, so one that runs often is checked once. */
  readonly #validPlans = new WeakSet<Plan>();
  #loaded: L | undefined;

  /**
   * @param range layers that the runner has
   * @param known what it may limit attention by
   */
  constructor(runner: Runner, range: LayerRange, known: AttentionCapabilities, loaded: L) {
    this.#runner = runner;
    this.#range = range;
    this.#known = known;
    this.#loaded = loaded;
  }

  /** @throws COPPICE_BACKEND_DISPOSED */
  get loaded(): L {
    this.throwIfDisposed();
    return this.#loaded as L;
  }

  /** @throws COPPICE_BACKEND_DISPOSED */
  throwIfDisposed(): void {
    if (this.#loaded === undefined) throw disposedRunner();
  }

  /** From now on the runner is disposed. @returns what is to be let go; undefined when it was disposed before */
  release(): L | undefined {
    const loaded = this.#loaded;
    this.#loaded = undefined;
    return loaded;
  }

  /**
   * Checks a request before any work.
   * @returns it with its plan by layer
   * @throws COPPICE_BACKEND_DISPOSED, COPPICE_ABORTED, and what `checkRunRequest` and `parsePlan` do
   */
  checkRun(request: RunRequest): { checked: CheckedRunRequest; plans: ReadonlyMap<number, LayerPlan> } {
    this.throwIfDisposed();
    throwIfAborted(request.signal, "starting a run");
    const { model } = this.#runner;
    const checked = checkRunRequest(model, request, this.#range, this.#known, this.#runner);
    const { plan } = request;
    if (plan && !this.#validPlans.has(plan)) {
      parsePlan(plan, model);
      this.#validPlans.add(plan);
    }
    return { checked, plans: new Map(plan?.layers.map((layer) => [layer.layer, layer])) };
  }

  /**
   * Checks what a cache is to be made for.
   * @returns what its runs are limited to, resolved at the model's context
   * @throws COPPICE_BACKEND_DISPOSED, COPPICE_USAGE, and what `checkRunAttention` does
   */
  checkCache(sequences: number, attention: RunAttention | undefined): CheckedAttention | undefined {
    this.throwIfDisposed();
    if (!Number.isSafeInteger(sequences) || sequences < 1) {
      throw new CoppiceError("COPPICE_USAGE", `a cache for ${sequences} sequences is wanted; give 1 or more`);
    }
    const { model } = this.#runner;
    const lengths = new Array<number>(sequences).fill(model.contextLength);
    return attention && checkRunAttention(model, attention, lengths, this.#known);
  }
}

/**
 * The cache or memory of a request as what its runner made.
 * @throws COPPICE_USAGE when `runner` did not make it, COPPICE_BACKEND_DISPOSED
 */
export function checkOwned<T extends Owned>(
  runner: object,
  kind: abstract new (...args: never[]) => T,
  given: object | undefined,
  name: "cache" | "memory",
): T | undefined {
  if (given === undefined) return undefined;
  if (!(given instanceof kind) || given.owner !== runner) {
    const make = name === "cache" ? "createCache" : "createMemory";
    throw new CoppiceError("COPPICE_USAGE", `the ${name} was made by another runner`, {
      hint: `make it with ${make} of the runner that runs`,
    });
  }
  if (given.disposed)
    throw new CoppiceError("COPPICE_BACKEND_DISPOSED", `the ${name} was disposed before this run`);
  return given;
}

export function disposedRunner(): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_DISPOSED", "the runner was disposed and cannot run again");
}
