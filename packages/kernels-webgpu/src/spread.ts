/** Workgroups of a one-dimensional grid over two axes: one axis has at most 65535. */
export function spread(count: number): [number, number] {
  const most = 65535;
  return count <= most ? [count, 1] : [most, Math.ceil(count / most)];
}

/** Workgroups for one thread per item. */
export const spreadThreads = (items: number, threads: number) => spread(Math.ceil(items / threads));

/** WGSL: the number of the workgroup in a grid of `spread`. */
export const groupIndex = "(group.x + group.y * groups.x)";

/** WGSL: the signature of an entry point that counts workgroups in a grid of `spread`. */
export function mainOf(threads: number): string {
  return `@compute @workgroup_size(${threads})
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) t: u32,
)`;
}

/**
 * WGSL of `fn <name>(t, value) -> f32`: sum or maximum of one value per thread of a workgroup, in workgroup memory, so that it
 * is right whatever the size of subgroups.
 */
export function reduceCode(name: string, kind: "sum" | "max", threads: number): string {
  const [a, b] = [`${name}_values[t]`, `${name}_values[t + step]`];
  return `var<workgroup> ${name}_values: array<f32, ${threads}>;
fn ${name}(t: u32, value: f32) -> f32 {
  workgroupBarrier();
  ${name}_values[t] = value;
  for (var step = ${threads / 2}u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (t < step) { ${a} = ${kind === "sum" ? `${a} + ${b}` : `max(${a}, ${b})`}; }
  }
  workgroupBarrier();
  return ${name}_values[0];
}`;
}
