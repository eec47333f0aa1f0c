import { createWebgpuBackend, type DeviceSource } from "@coppice/backend-webgpu";
import { type ErrorCode, isCoppiceError, type RunRequest } from "@coppice/core";
import { type ConformanceCase, randomModel, slowForward } from "@coppice/plugin-kit";

const loaded = randomModel({ seed: 3, layers: 1, hidden: 16, vocab: 24 });
const ids = (length: number) => Int32Array.from({ length }, (_, i) => (7 * i + 3) % 24);

/** A source whose devices are seen by the test. */
function watched(source: DeviceSource) {
  const devices: GPUDevice[] = [];
  const alive = { buffers: 0 };
  return {
    devices,
    alive,
    name: source.name,
    async requestAdapter() {
      const adapter = await source.requestAdapter();
      if (!adapter) return null;
      const request = adapter.requestDevice.bind(adapter);
      adapter.requestDevice = async (descriptor?: GPUDeviceDescriptor) => {
        const device = await request(descriptor);
        const create = device.createBuffer.bind(device);
        device.createBuffer = (wanted: GPUBufferDescriptor) => {
          const buffer = create(wanted);
          const destroy = buffer.destroy.bind(buffer);
          alive.buffers++;
          let gone = false;
          buffer.destroy = () => {
            if (!gone) alive.buffers--;
            gone = true;
            destroy();
          };
          return buffer;
        };
        devices.push(device);
        return device;
      };
      return adapter;
    },
  };
}

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

/** Devices that are missing, wrong, shared, lost and given back. */
export function deviceCases(source: DeviceSource): ConformanceCase[] {
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
        const expected = slowForward(loaded, [...ids(40)])
          .logits.flat()
          .slice(-24);
        // A row of an expert is 64 bytes, an expert a kibibyte.
        const backend = createWebgpuBackend(source, { maxBindingBytes: 12 * 1024 });
        const runner = await backend.load(loaded);
        const { logits = [] } = await runner.run(positionsOf(40));
        await runner.dispose();
        const worst = Math.max(
          ...Array.from(logits, (value, i) => Math.abs(value - (expected[i] as number))),
        );
        expect(worst < 1e-4, `logits differ by ${worst}`);
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
        own.devices[0]?.destroy();
        await own.devices[0]?.lost;
        const { code, message } = await codeOf(() => lost.run(positionsOf(3)));
        expect(code === "COPPICE_BACKEND_FAILED" && message.includes("lost"), `${code} ${message}`);
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
      name: "a device that computes wrong results is refused with the kernel's name",
      async run() {
        const own = {
          name: "a wrong device",
          async requestAdapter() {
            const adapter = await source.requestAdapter();
            if (!adapter) return null;
            const request = adapter.requestDevice.bind(adapter);
            adapter.requestDevice = async (descriptor?: GPUDeviceDescriptor) => {
              const device = await request(descriptor);
              const create = device.createShaderModule.bind(device);
              // The best of two equal slots is the higher one, as ONNX Runtime's CPU kernel has it, and others are lost.
              device.createShaderModule = (wanted) =>
                create({
                  ...wanted,
                  code: wanted.code.replace("return value > other ||", "return value < other ||"),
                });
              return device;
            };
            return adapter;
          },
        };
        const { code, message } = await codeOf(() => createWebgpuBackend(own).load(loaded));
        expect(
          code === "COPPICE_BACKEND_UNAVAILABLE" && message.includes('kernel "routing"'),
          `${code} ${message}`,
        );
      },
    },
  ];
}
