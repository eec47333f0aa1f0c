import type { Plan, Runner, RunRequest, RunResult } from "@coppice/core";
import { type BackendSource, randomSequences, withRunner } from "./backend-subject.js";
import { expectClose, expectCode, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import { mergedPlan, prunedPlan, topOnePlan } from "./sample-plans.js";
import { slowForward } from "./slow-model.js";

const tolerance = 1e-4;
const lengths = [12, 5, 9];

/**
 * Runners with a pace (`WorkPace`): runs that overlap give the bits that they give alone, and boundaries that a runner holds are those
 * that it returns. Runners without one pass for having none.
 */
export function paceCases(source: BackendSource, name: string, loaded: MemoryModel): ConformanceCase[] {
  const { model } = loaded;
  const last = model.layers.length - 1;
  const test = (what: string, work: (runner: Runner) => Promise<void>): ConformanceCase => ({
    name: `${name}: ${what}`,
    run: () =>
      withRunner(source, loaded, async (runner) => {
        if (runner.pace) await work(runner);
      }),
  });
  const request = (seed: number, plan: Plan | undefined): RunRequest => {
    const sequences = randomSequences(model, lengths, seed);
    return {
      sequences,
      // Several targets at one position, and positions without any.
      positions: sequences.map((ids) => Int32Array.from(ids, (_, i) => Math.max(1, i))),
      targets: randomSequences(model, lengths, seed + 1),
      ...(plan && { plan }),
    };
  };
  const plans = [
    undefined,
    prunedPlan(model, 3),
    mergedPlan(model, 4),
    mergedPlan(model, 5),
    topOnePlan(model),
  ];
  const requests = plans.map((plan, i) => request(20 + 2 * (i % 2), plan));
  const expectBits = (found: RunResult, expected: RunResult, what: string) => {
    expectEqual([...(found.targetLogProbs ?? [])], [...(expected.targetLogProbs ?? [])], `${what}, targets`);
    expectEqual([...(found.argmax ?? [])], [...(expected.argmax ?? [])], `${what}, most likely tokens`);
  };

  return [
    test("runs that overlap give what they give alone, and what the formula gives", async (runner) => {
      const alone: RunResult[] = [];
      for (const one of requests) alone.push(await runner.run(one));
      const together = await Promise.all(requests.map((one) => runner.run(one)));
      for (const [i, own] of requests.entries()) {
        expectBits(together[i] as RunResult, alone[i] as RunResult, `run ${i}`);
        expectClose(alone[i]?.targetLogProbs ?? [], slowTargets(loaded, own), tolerance, `run ${i}`);
      }
    }),
    test("runs start from boundaries that are held", async (runner) => {
      const hold = model.layers.map(({ index }) => index).slice(1);
      const whole = await Promise.all(requests.map((one) => runner.run({ ...one, hold })));
      for (const from of hold) {
        const resumed = await Promise.all(
          requests.map((one, i) => {
            const held = whole[i]?.held?.get(from);
            return runner.run({ ...one, from, ...(held && { held }) });
          }),
        );
        for (const [i, own] of resumed.entries())
          expectBits(own, whole[i] as RunResult, `run ${i} from ${from}`);
      }
      const [own] = requests as [RunRequest];
      const held = whole[0]?.held?.get(last);
      const { boundaries } = await runner.run({ ...own, boundaries: [last] });
      if (!held) throw new Error(`the runner held no boundary ${last}`);
      expectThat(held.bytes > 0, "a held boundary takes no bytes");
      // Read back by a run that returns what it starts from, a layer further.
      const end = last + 1;
      const fromHeld = await runner.run({ sequences: own.sequences, from: last, held, boundaries: [end] });
      const hidden = boundaries.get(last);
      const fromValues = await runner.run({
        sequences: own.sequences,
        from: last,
        ...(hidden && { hidden }),
        boundaries: [end],
      });
      expectClose(
        fromHeld.boundaries.get(end) ?? [],
        fromValues.boundaries.get(end) ?? [],
        tolerance,
        "outputs",
      );
      await expectCode(
        () => runner.run({ sequences: [Int32Array.of(1)], from: last, held }),
        ["COPPICE_USAGE"],
        "a boundary of other sequences",
      );
      for (const result of whole) for (const one of result.held?.values() ?? []) one.dispose();
      await expectCode(
        () => runner.run({ ...own, from: last, held }),
        ["COPPICE_BACKEND_DISPOSED"],
        "a boundary that was disposed",
      );
    }),
    test("an aborted run leaves those besides it as they are", async (runner) => {
      const [first, second] = requests as [RunRequest, RunRequest];
      const stop = new AbortController();
      const aborted = runner.run({ ...first, signal: stop.signal });
      const other = runner.run(second);
      stop.abort();
      await expectCode(() => aborted, ["COPPICE_ABORTED"], "an aborted run");
      expectBits(await other, await runner.run(second), "the run besides it");
    }),
  ];
}

/** Log-probabilities of a request's targets by the formula. */
function slowTargets(loaded: MemoryModel, { sequences, positions, targets, plan }: RunRequest): number[] {
  return sequences.flatMap((ids, s) => {
    const { logits } = slowForward(loaded, [...ids], plan);
    return Array.from(positions?.[s] ?? [], (position, i) => {
      const row = logits[position] as number[];
      const most = Math.max(...row);
      const total = row.reduce((sum, value) => sum + Math.exp(value - most), 0);
      return (row[targets?.[s]?.[i] as number] as number) - most - Math.log(total);
    });
  });
}
