import type { GpuBuffer } from "./gpu-buffer.js";

export type ParamType = "u32" | "i32" | "f32";

/** A compute shader, before it is compiled for a device. */
export interface KernelSource<P extends string = string> {
  /** Name of the kernel, for messages: "matmul-tiled". */
  readonly name: string;
  /** Uniform values of one dispatch, members of `p` in the code. */
  readonly params: Readonly<Record<P, ParamType>>;
  /** Storage buffers in the order of binding; `type` is the WGSL type of the variable. */
  readonly bindings: readonly KernelBinding[];
  /** WGSL without the declarations of `p` and of the bindings; its entry point is `main`. */
  readonly code: string;
  /** WGSL extensions: "f16". */
  readonly enable?: readonly string[];
  /** Rules of the compiler that are switched off. */
  readonly unchecked?: readonly string[];
}

export interface KernelBinding {
  readonly name: string;
  readonly type: string;
  readonly access: "read" | "read_write";
}

/** A kernel that is compiled for a device. */
export interface Kernel<P extends string = string> {
  readonly id: number;
  readonly name: string;
  readonly params: readonly { readonly name: P; readonly type: ParamType }[];
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  /** By the ids of the bound buffers. */
  readonly groups: Map<string, GPUBindGroup>;
}

/** Most bytes that the uniform values of one dispatch take; also the alignment that every device has. */
export const paramBytes = 256;

const storage = (name: string, type: string, access: KernelBinding["access"]): KernelBinding => ({
  name,
  type,
  access,
});
export const reads = (name: string, type: string) => storage(name, type, "read");
export const writes = (name: string, type: string) => storage(name, type, "read_write");

/** The whole WGSL of a kernel. */
export function kernelCode({ params, bindings, code, enable = [], unchecked = [] }: KernelSource): string {
  const members = Object.entries(params).map(([name, type]) => `  ${name}: ${type},`);
  return [
    ...enable.map((extension) => `enable ${extension};`),
    ...unchecked.map((rule) => `diagnostic(off, ${rule});`),
    "struct Params {",
    ...members,
    "}",
    "@group(0) @binding(0) var<uniform> p: Params;",
    ...bindings.map(
      ({ name, type, access }, i) => `@group(0) @binding(${i + 1}) var<storage, ${access}> ${name}: ${type};`,
    ),
    code,
  ].join("\n");
}

export function compileKernel<P extends string>(
  device: GPUDevice,
  id: number,
  source: KernelSource<P>,
): Kernel<P> {
  const compute = 4; // GPUShaderStage.COMPUTE, a global that Node lacks.
  const layout = device.createBindGroupLayout({
    label: source.name,
    entries: [
      { binding: 0, visibility: compute, buffer: { type: "uniform", hasDynamicOffset: true } },
      ...source.bindings.map(
        ({ access }, i): GPUBindGroupLayoutEntry => ({
          binding: i + 1,
          visibility: compute,
          buffer: { type: access === "read" ? "read-only-storage" : "storage" },
        }),
      ),
    ],
  });
  const module = device.createShaderModule({ label: source.name, code: kernelCode(source) });
  const pipeline = device.createComputePipeline({
    label: source.name,
    layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
    compute: { module, entryPoint: "main" },
  });
  const params = (Object.entries(source.params) as [P, ParamType][]).map(([name, type]) => ({ name, type }));
  return { id, name: source.name, params, pipeline, layout, groups: new Map() };
}

/** The bind group of these buffers, made once. */
export function bindGroup(
  device: GPUDevice,
  kernel: Kernel,
  uniforms: GPUBuffer,
  buffers: readonly GpuBuffer[],
): GPUBindGroup {
  let key = "";
  for (const buffer of buffers) key += `${buffer.id},`;
  const known = kernel.groups.get(key);
  if (known) return known;
  const group = device.createBindGroup({
    layout: kernel.layout,
    entries: [
      { binding: 0, resource: { buffer: uniforms, size: paramBytes } },
      ...buffers.map((buffer, i) => ({ binding: i + 1, resource: { buffer: buffer.handle } })),
    ],
  });
  kernel.groups.set(key, group);
  const forget = () => {
    kernel.groups.delete(key);
    for (const { bound } of buffers) bound.delete(forget);
  };
  for (const { bound } of buffers) bound.add(forget);
  return group;
}
