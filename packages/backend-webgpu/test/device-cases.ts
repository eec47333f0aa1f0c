import { createWebgpuBackend, type DeviceSource } from "@coppice/backend-webgpu";
import {
  type AttentionPlan,
  attentionPlanModel,
  type ErrorCode,
  isCoppiceError,
  type RunRequest,
} from "@coppice/core";
import { backendConformance, type ConformanceCase, randomModel, slowForward } from "@coppice/plugin-kit";
import { watched, withDevices } from "./watched-source.mjs";

const loaded = randomModel({ seed: 3, layers: 1, hidden: 16, vocab: 24 });
const ids = (length: number) => Int32Array.from({ length }, (_, i) => (7 * i + 3) % 24);

async function codeOf(work: () => unknown): Promise<{ code: ErrorCode | "none"; message: string }> {
  try {
    await work();
    return { code: "none", message: "" };
  } catch (error) {
    if (!isCoppiceError(error)) throw error;
    return { code: error.code, message: error.message };
  }
}

function expect(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

const positionsOf = (tokens: number): RunRequest => ({
  sequences: [ids(tokens)],
  positions: [Int32Array.of(tokens - 1)],
});

/**
 * Devices that are missing, wrong, shared, lost and given back.
 * @param shared for cases that need no device of their own
 */
export function deviceCases(source: DeviceSource, shared = createWebgpuBackend(source)): ConformanceCase[] {
  return [
    {
      name: "no adapter is said so",
      async run() {
        const backend = createWebgpuBackend({ name: "nothing", requestAdapter: async () => null });
        const { code, message } = await codeOf(() => backend.load(loaded));
        expect(
          code === "COPPICE_BACKEND_UNAVAILABLE" && message.includes("nothing has no adapter"),
          `${code} ${message}`,
        );
      },
    },
    {
      name: "matrices beyond the binding limit are split, and give the same",
      async run() {
        // A row of an expert is 64 bytes, an expert a kibibyte. With the kernels of graphics devices, which other cases leave out.
        const backend = createWebgpuBackend(source, { maxBindingBytes: 12 * 1024, serial: false });
        const runner = await backend.load(loaded);
        // In tiles, and each row by itself.
        for (const tokens of [40, 3]) {
          const expected = slowForward(loaded, [...ids(tokens)])
            .logits.flat()
            .slice(-24);
          const { logits = [] } = await runner.run(positionsOf(tokens));
          const worst = Math.max(
            ...Array.from(logits, (value, i) => Math.abs(value - (expected[i] as number))),
          );
          expect(worst < 1e-4, `logits of ${tokens} tokens differ by ${worst}`);
        }
        await runner.dispose();
      },
    },
    {
      name: "a matrix that cannot be split is refused with both numbers",
      async run() {
        const backend = createWebgpuBackend(source, { maxBindingBytes: 512 });
        const { code, message } = await codeOf(() => backend.load(loaded));
        expect(
          /^COPPICE_BACKEND_(UNSUPPORTED|FAILED)$/.test(code) && message.includes("512"),
          `${code} ${message}`,
        );
      },
    },
    {
      name: "a lost device is named; the next load opens another, which runners share and the last one gives back",
      async run() {
        const own = watched(source);
        const backend = createWebgpuBackend(own);
        const lost = await backend.load(loaded);
        const during = codeOf(() => lost.run(positionsOf(3)));
        own.devices[0]?.destroy();
        const found = await during;
        expect(found.code === "COPPICE_BACKEND_LOST", `during a run: ${found.code} ${found.message}`);
        const { code, message } = await codeOf(() => lost.run(positionsOf(3)));
        expect(code === "COPPICE_BACKEND_LOST", `${code} ${message}`);
        await lost.dispose();
        expect(own.alive.buffers === 0, `${own.alive.buffers} buffers are left of the lost device`);
        const first = await backend.load(loaded);
        const second = await backend.load(loaded);
        expect(own.devices.length === 2, `${own.devices.length} devices were opened`);
        const cache = first.createCache(1);
        await first.run({ sequences: [ids(3)], cache });
        const held = own.alive.buffers;
        await first.dispose();
        expect(
          own.alive.buffers > 0 && own.alive.buffers < held,
          `${own.alive.buffers} of ${held} buffers are left`,
        );
        await second.run(positionsOf(3));
        await second.dispose();
        expect(own.alive.buffers === 0, `${own.alive.buffers} buffers are left at the end`);
      },
    },
    {
      name: "tokens are drawn on a device that runs threads at once",
      async run() {
        const backend = createWebgpuBackend(source, { serial: false });
        const kept = await backend.load(loaded);
        expect(kept.draws === true, "the runner does not draw");
        const cases = backendConformance(() => backend, { fixtures: [] });
        const drawing = cases.filter(({ name }) => name.startsWith("drawn tokens"));
        expect(drawing.length === 2, `${drawing.length} cases are about drawn tokens`);
        for (const { run } of drawing) await run();
        await kept.dispose();
      },
    },
    {
      name: "a cache takes what the spans of its heads take, however long the text",
      async run() {
        const runner = await shared.load(loaded);
        const { attention } = loaded.model.layers[0] as (typeof loaded.model.layers)[number];
        expect(attention.kind === "gqa", "the model has KV heads");
        const { kvHeads, headDim } = attention;
        const rules = [
          { alpha: 8, beta: 0 },
          { alpha: 16, beta: 0 },
        ];
        const layers = [Array.from({ length: kvHeads }, (_, head) => head % 2)];
        const plan: AttentionPlan = {
          format: "coppice.attention",
          version: 1,
          model: attentionPlanModel(loaded.model),
          blockSize: 4,
          sinks: 4,
          rules,
          layers,
        };
        const cache = runner.createCache(2, { plan });
        for (const tokens of [14, 1, 1, 1, 1]) {
          const sequences = [ids(tokens), ids(tokens)];
          await runner.run({ sequences, cache });
        }
        const rows = Array.from({ length: kvHeads }, (_, head) => (head % 2 ? 16 : 8));
        const wanted = 2 * 2 * 4 * headDim * rows.reduce((sum, count) => sum + count, 0);
        expect(cache.bytes === wanted, `the cache takes ${cache.bytes} bytes, its spans ${wanted}`);
        await runner.dispose();
      },
    },
    {
      name: "a device that computes wrong results is refused with the kernel's name",
      async run() {
        const own = withDevices(source, (device) => {
          const create = device.createShaderModule.bind(device);
          // The best of two equal slots is the higher one, as ONNX Runtime's CPU kernel has it, and others are lost.
          device.createShaderModule = (wanted) =>
            create({
              ...wanted,
              code: wanted.code.replace("return value > other ||", "return value < other ||"),
            });
        });
        const { code, message } = await codeOf(() => createWebgpuBackend(own).load(loaded));
        expect(
          code === "COPPICE_BACKEND_UNAVAILABLE" && message.includes('kernel "routing"'),
          `${code} ${message}`,
        );
      },
    },
  ];
}
