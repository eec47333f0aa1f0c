import {
  CoppiceError,
  createPlan,
  type Executor,
  moeLayers,
  noWork,
  type Plan,
  type PlanScores,
  RunEmitter,
} from "@coppice/core";
import {
  createRemotePool,
  createWorkServer,
  type MeasuringPool,
  parseOutcome,
  parseTask,
  sampleSet,
  type Task,
  type WorkOutcome,
  type WorkRequest,
  type WorkTransport,
} from "@coppice/evaluate";
import { toyModel } from "@coppice/plugin-kit";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeDoubles, encodeDoubles } from "../src/work-outcome.js";
import { readSampleSet, workRequest } from "../src/work-request.js";

const model = toyModel();
const task = parseTask('{"prompt": "a", "answer": " b"}\n\n{"prompt": "c", "answer": " d"}', "two.jsonl");
const plan = (...experts: number[]): Plan =>
  createPlan(
    model,
    moeLayers(model).map(({ index }) => ({ layer: index, experts })),
  );

/** Scores say which experts are kept; counts what it is asked. */
function pool(scores: (plan: Plan) => number[] = (of) => [of.layers[0]?.experts[0] ?? -1, Number.NaN]) {
  const asked: Plan[] = [];
  const executor: Executor = {
    preferredBatch: 1,
    evaluate: async (plans) =>
      plans.map((each): PlanScores => {
        asked.push(each);
        return { scores: Float64Array.from(scores(each)), correct: Uint8Array.of(1, 0) };
      }),
    work: () => ({
      tokenLayers: 7 * asked.length,
      avoidedTokenLayers: asked.length,
      expertTokens: 5 * asked.length,
      avoidedExpertTokens: 3 * asked.length,
    }),
    dispose: async () => {},
    [Symbol.asyncDispose]: async () => {},
  };
  const measuring: MeasuringPool = {
    model,
    scorer: async () => executor,
    evaluateTask: async ({ metric }) => ({
      metric: metric as "f1",
      value: 0.1 + 0.2,
      low: 0,
      high: Number.POSITIVE_INFINITY,
      samples: 2,
      scores: Float64Array.of(-0, 5e-324),
    }),
  };
  return { asked, server: createWorkServer({ pool: measuring, engine: "e1", worker: "w", numerics: "n" }) };
}

/** Carries everything as JSON, as a real transport does. */
function transport(
  server: ReturnType<typeof pool>["server"],
  change = (value: unknown) => value,
): WorkTransport {
  return {
    preferredBatch: 1,
    run: async (requests, samples, { onOutcome }) =>
      Promise.all(
        requests.map(async (request) => {
          const sent = JSON.parse(JSON.stringify(request)) as unknown;
          const outcome = await server.answer(sent, async () => samples.text);
          const parsed = parseOutcome(change(JSON.parse(JSON.stringify(outcome))), request);
          onOutcome?.(parsed);
          return parsed;
        }),
      ),
    dispose: async () => {},
    [Symbol.asyncDispose]: async () => {},
  };
}

const request = (change: object = {}): WorkRequest => ({
  ...workRequest(
    {
      model: model.fingerprint,
      engine: "e1",
      samples: sampleSet(task).hash,
      chat: false,
      measure: { objective: "likelihood" },
      name: "two.jsonl",
    },
    plan(0, 1, 2),
    model,
  ),
  ...change,
});

describe("samples that travel", () => {
  it.each<[string, Task]>([
    ["generation", task],
    ["choices", parseTask('{"prompt": "a", "choices": [" b", " c"], "answer": 1}', "c.jsonl")],
    ["text", parseTask('{"text": "x"}\n{"text": "y"}', "t.jsonl")],
    ["a file", parseTask("some text\nof two lines", "t.txt")],
    ["a long file", parseTask("words ".repeat(400_000), "long.txt")],
  ])("come back as they were: %s", (_, original) => {
    const { text, hash } = sampleSet(original);
    expect(readSampleSet(text, hash, original.name)).toEqual(original);
    expect(() => readSampleSet(`${text} `, hash, original.name)).toThrow(
      expect.objectContaining({ code: "COPPICE_EXECUTOR_FOREIGN" }),
    );
  });
});

it("carries doubles bit by bit", () => {
  fc.assert(
    fc.property(fc.float64Array(), (values) => {
      expect(decodeDoubles(encodeDoubles(values))).toEqual(values);
    }),
  );
});

describe("a remote pool", () => {
  it("gives what the pool gives, asks for equal plans once and counts the work", async () => {
    const { server, asked } = pool();
    const remote = createRemotePool({ model, engine: "e1", transport: transport(server) });
    const scorer = await remote.scorer({ task });
    const [one, two, three] = await scorer.evaluate([plan(3, 4, 5), plan(5, 4, 3), plan(0, 1, 2)]);
    expect([one, two].map((each) => each?.scores)).toEqual([
      Float64Array.of(3, Number.NaN),
      Float64Array.of(3, Number.NaN),
    ]);
    expect(three?.correct).toEqual(Uint8Array.of(1, 0));
    one?.scores.fill(9);
    expect((await scorer.evaluate([plan(3, 4, 5)]))[0]?.scores[0]).toBe(3);
    expect(asked).toHaveLength(2);
    expect(scorer.work()).toEqual({
      tokenLayers: 14,
      avoidedTokenLayers: 2,
      expertTokens: 10,
      avoidedExpertTokens: 6,
    });
    const score = await remote.evaluateTask({ task, metric: "f1" });
    expect(score).toMatchObject({
      metric: "f1",
      value: 0.1 + 0.2,
      high: Number.POSITIVE_INFINITY,
      samples: 2,
    });
    expect(Object.is(score.scores[0], -0)).toBe(true);
  });

  it("warns once when the arithmetic of workers differs", async () => {
    const warnings: string[] = [];
    const emitter = new RunEmitter();
    emitter.on("warn", ({ message }) => warnings.push(message));
    const names = ["n", "n", "other", "n", "other"];
    const changing = transport(pool().server, (value) => {
      const numerics = names.shift();
      return { ...(value as object), numerics, worker: `w-${numerics}` };
    });
    const scorer = await createRemotePool({ model, engine: "e1", transport: changing, emitter }).scorer({
      task,
    });
    await scorer.evaluate(
      [0, 1, 2, 3, 4].map((first) => plan(...[first, first + 1, (first + 3) % 6].sort())),
    );
    expect(warnings).toEqual([expect.stringMatching(/w-other computes other low bits than w-n/)]);
  });

  it("passes a plan's fault on, and finds wrong numbers of scores", async () => {
    const { server } = pool((of) => {
      if (of.layers[0]?.experts[0] === 3)
        throw new CoppiceError("COPPICE_BACKEND_FAILED", "no", { hint: "why" });
      return [1, 2, 3];
    });
    const scorer = await createRemotePool({ model, engine: "e1", transport: transport(server) }).scorer({
      task,
    });
    await expect(scorer.evaluate([plan(3, 4, 5)])).rejects.toMatchObject({
      code: "COPPICE_BACKEND_FAILED",
      hint: "why",
    });
    await expect(scorer.evaluate([plan(0, 1, 2)])).rejects.toMatchObject({ code: "COPPICE_EXECUTOR_RESULT" });
  });
});

describe("a worker", () => {
  it.each<[string, object, RegExp]>([
    ["model", { model: "another" }, /model "another".*"toy-3x6"/],
    ["engine", { engine: "e2" }, /engine "e2".*"e1"/],
    ["version", { version: 2 }, /version 2.*has 1/],
    ["id", { id: "0".repeat(32) }, /id "0+"/],
    ["plan under a known id", { plan: plan(3, 4, 5) }, /id/],
    ["chat under a known id", { chat: true }, /id/],
    ["shape", { samples: 7 }, /malformed/],
    ["measure", { measure: { objective: "beauty" } }, /malformed/],
  ])("refuses work of another %s", async (_, change, message) => {
    const { server, asked } = pool();
    const sent = JSON.parse(JSON.stringify(request(change)));
    await expect(server.answer(sent, async () => sampleSet(task).text)).rejects.toMatchObject({
      code: "COPPICE_EXECUTOR_FOREIGN",
      message: expect.stringMatching(message),
    });
    expect(asked).toEqual([]);
  });

  it("refuses other samples and nonsense, and answers that a plan does not fit", async () => {
    const { server } = pool();
    await expect(server.answer(request(), async () => "{}")).rejects.toMatchObject({
      code: "COPPICE_EXECUTOR_FOREIGN",
    });
    for (const value of [null, 1, "x", [], {}]) {
      await expect(server.answer(value, async () => "")).rejects.toMatchObject({
        code: "COPPICE_EXECUTOR_FOREIGN",
      });
    }
    const bad = { ...request(), plan: { ...plan(0, 1, 2), layers: [{ layer: 99, experts: [0] }] } };
    expect((await server.answer(bad, async () => "")).error).toMatchObject({ code: "COPPICE_PLAN_INVALID" });
  });

  it("answers twice with the same, and computes once", async () => {
    const { server, asked } = pool();
    const samples = async () => sampleSet(task).text;
    expect(await server.answer(request(), samples)).toEqual(await server.answer(request(), samples));
    expect(asked).toHaveLength(1);
  });
});

describe("an outcome", () => {
  const good: WorkOutcome = {
    version: 1,
    id: request().id,
    worker: "w",
    scores: encodeDoubles([1, 2]),
    correct: "10",
    work: { ...noWork, tokenLayers: 1 },
  };

  it.each<[string, unknown]>([
    ["nothing", undefined],
    ["another version", { ...good, version: 2 }],
    ["another id", { ...good, id: "f".repeat(32) }],
    ["no scores", { ...good, scores: undefined }],
    ["empty scores", { ...good, scores: "" }],
    ["half a double", { ...good, scores: "00ff" }],
    ["no hex", { ...good, scores: "zz".repeat(8) }],
    ["wrong answers", { ...good, correct: "12" }],
    ["too few answers", { ...good, correct: "1" }],
    ["no count", { ...good, work: {} }],
    ["negative count", { ...good, work: { ...noWork, avoidedExpertTokens: -1 } }],
    ["count left out", { ...good, work: { tokenLayers: 1, avoidedTokenLayers: 0, expertTokens: 0 } }],
    ["a metric", { ...good, metric: { name: "f1", value: encodeDoubles([1, 2, 3]) } }],
    ["an error that is none", { ...good, error: { code: "EVIL", message: "x" } }],
    ["no worker", { ...good, worker: 7 }],
  ])("is refused with %s", (_, value) => {
    expect(() => parseOutcome(value, request())).toThrow(
      expect.objectContaining({ code: "COPPICE_EXECUTOR_RESULT" }),
    );
  });

  it("is accepted when it is right", () => {
    expect(parseOutcome(good, request()).result).toEqual({
      scores: Float64Array.of(1, 2),
      correct: Uint8Array.of(1, 0),
    });
  });
});
