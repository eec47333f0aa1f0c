import { createHash } from "node:crypto";
import { checkRecord, createPlan, errorCodes, type LayerPlan, parsePlan, recordPlan } from "@coppice/core";
import { expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
const down = "AAECAwQFBgcI".repeat(400);
const weight = "AACAPwAAAEAAAEBA".repeat(300);
const layer: LayerPlan = { layer: 2, experts: [4, 1], merge: [[1, 0, 0, 0, 0.5]], topK: 1 };
const plan = createPlan(model, [
  { layer: 0, experts: [0, 1, 2], down: "AAAA" },
  { ...layer, down, router: { weight, bias: [0.5, 1] } },
]);

const recordOf = (value: unknown) => recordPlan(value, model) as typeof plan;
const refused = (work: () => unknown) => {
  try {
    work();
  } catch (error) {
    return error as { code: string; message: string; hint: string };
  }
  throw new Error("nothing was thrown");
};

test("a record keeps all but long packed values, of which it has shape and hash", () => {
  expect(recordOf(plan)).toEqual({
    ...plan,
    layers: [
      plan.layers[0],
      {
        ...layer,
        down: { shape: [2, 8, 3], sha256: sha256(down) },
        router: { weight: { shape: [2, 8], sha256: sha256(weight) }, bias: [0.5, 1] },
      },
    ],
  });
  // A record, and what is no plan, stay as they are.
  expect(recordOf(recordOf(plan))).toEqual(recordOf(plan));
  for (const other of [undefined, null, 3, [], {}, { layers: [null, 5, { layer: 2 }, { layer: 9, down }] }]) {
    expect(recordPlan(other, model)).toEqual(other);
  }
});

test("parsePlan says that a record lacks the values, and what to give", () => {
  const error = refused(() =>
    parsePlan(recordOf({ ...plan, layers: [{ ...layer, merge: undefined, down }] }), model),
  );
  expect(error.code).toBe("COPPICE_PLAN_RECORD");
  expect(errorCodes.COPPICE_PLAN_RECORD.exit).toBe(2);
  expect(error.message).toContain(
    `layers[0].down is only the hash of its values (shape [2,8,3], SHA-256 ${sha256(down)})`,
  );
  expect(error.hint).toContain("--plan");
});

test("checkRecord takes the plan of the record, and shows both hashes of another", () => {
  const changed = `${down.slice(0, -1)}J`;
  const other = createPlan(model, [{ ...layer, down: changed, router: { weight } }]);
  for (const record of [plan, recordOf(plan)]) {
    checkRecord(record, plan);
    const { code, message } = refused(() => checkRecord(record, other));
    expect(code).toBe("COPPICE_VERIFY_DIFFERENT");
    expect(message).toContain(`down of layer 2 in the plan has the SHA-256 ${sha256(changed)}`);
    expect(message).toContain(sha256(down));
    expect(refused(() => checkRecord(record, createPlan(model, [layer]))).message).toContain("is absent");
    const rows = createPlan(model, [{ ...layer, down, router: { weight: `${weight}AAAA` } }]);
    expect(refused(() => checkRecord(record, rows)).message).toContain(sha256(weight));
    // Other experts show in the weights, and a plan for another model is not compared.
    checkRecord(record, createPlan(model, [{ ...layer, experts: [1, 4] }]));
    checkRecord(record, createPlan({ ...model, fingerprint: "another" }, [layer]));
  }
  for (const nothing of [undefined, 7, {}, { ...plan, layers: [null, { layer: 2, experts: {} }] }]) {
    checkRecord(nothing, plan);
  }
});
