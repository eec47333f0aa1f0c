import { createWebgpuBackend, type DeviceSource, type OnnxRuntime } from "@coppice/backend-webgpu";
import { isCoppiceError } from "@coppice/core";
import { checkMatmul, type Gpu, type MatmulCall, selfCheck } from "@coppice/kernels-webgpu";
import { type ConformanceCase, randomModel } from "@coppice/plugin-kit";
import { SharedDevice } from "../src/device.js";

/** Of onnxruntime-web; the page fetches it with its WebAssembly. */
export const onnxRuntimeFile = "ort.webgpu.bundle.min.mjs";

export const engineName = (name: string) => `engine ort: ${name}`;

/** What `engineCases` runs of the suite. */
export const engineWhole = "mixtral: logits are those of the reference implementation";

/** Of the suite besides: latent attention, sinks and biases. */
export const engineChosen = [
  "deepseek_v2: logits are those of the reference implementation",
  "gpt_oss: logits are those of the reference implementation",
];

const operators = ["Gemm", "MatMulNBits", "SimplifiedLayerNormalization", "GroupQueryAttention"] as const;

/** ONNX Runtime whose sessions are seen by the test. @param seen operators of the graphs that ran */
export function watchedRuntime(runtime: OnnxRuntime, seen: Set<string>, works = true): OnnxRuntime {
  const create = async (...given: Parameters<OnnxRuntime["InferenceSession"]["create"]>) => {
    const session = await runtime.InferenceSession.create(...given);
    const text = new TextDecoder("latin1").decode(given[0] as unknown as Uint8Array);
    const run = session.run.bind(session);
    session.run = (async (...feeds: Parameters<typeof run>) => {
      for (const operator of operators) if (text.includes(operator)) seen.add(operator);
      return works ? run(...feeds) : {};
    }) as typeof run;
    return session;
  };
  return {
    Tensor: runtime.Tensor,
    InferenceSession: { create: create as typeof runtime.InferenceSession.create },
  };
}

/**
 * What the engine `ort` does beside the conformance suite.
 * @param source with ONNX Runtime
 * @param seen operators that ran on the backend of the suite
 * @param whole a case of the suite on that backend
 */
export function engineCases(
  source: DeviceSource & Required<Pick<DeviceSource, "onnxRuntime">>,
  seen: ReadonlySet<string>,
  whole: () => Promise<void>,
): ConformanceCase[] {
  const refusal = async (own: DeviceSource) => {
    try {
      await createWebgpuBackend(own, { engine: "ort" }).load(randomModel({ seed: 3, layers: 1 }));
    } catch (error) {
      if (isCoppiceError(error)) return `${error.code} ${error.message}`;
      throw error;
    }
    return "nothing";
  };
  const expect = (found: string, ...wanted: string[]) => {
    for (const one of wanted) if (!found.includes(one)) throw new Error(`${one} is missing in: ${found}`);
  };
  const cases: ConformanceCase[] = [
    {
      name: "products, norms and attention are those of ONNX Runtime",
      async run() {
        await whole();
        expect([...seen].join(" "), "Gemm", "SimplifiedLayerNormalization", "GroupQueryAttention");
      },
    },
    {
      name: "codes are multiplied by ONNX Runtime",
      async run() {
        const ran = new Set<string>();
        const onnxRuntime = async (device: GPUDevice) =>
          watchedRuntime(await source.onnxRuntime(device), ran);
        const {
          gpu,
          operators: own,
          release,
        } = await new SharedDevice({ ...source, onnxRuntime }, { engine: "ort" }).use();
        const by = { name: "codes", run: (_: Gpu, call: MatmulCall) => own.multiply(call) };
        const shape = { columns: 64, outputs: 40, by };
        for (const bits of [4, 8] as const) {
          const format = { kind: "quantized", bits, groupSize: 32, zeros: false } as const;
          await selfCheck(
            gpu,
            [1, 9].map((rows) => checkMatmul({ ...shape, format, rows, bias: rows > 1 })),
          );
        }
        expect([...ran].join(" "), "MatMulNBits");
        await release();
      },
    },
    {
      name: "a page that gave no ONNX Runtime is told so",
      async run() {
        const { name, requestAdapter } = source;
        expect(
          await refusal({ name, requestAdapter }),
          "COPPICE_BACKEND_UNAVAILABLE",
          `${name} was given no ONNX Runtime`,
        );
      },
    },
    {
      name: "a provider that computes wrong results is refused with the operator",
      async run() {
        const onnxRuntime = async (device: GPUDevice) =>
          watchedRuntime(await source.onnxRuntime(device), new Set(), false);
        const found = await refusal({ ...source, onnxRuntime });
        expect(found, "COPPICE_BACKEND_UNAVAILABLE", "norms of ONNX Runtime");
      },
    },
  ];
  return cases.map(({ name, run }) => ({ name: engineName(name), run }));
}
