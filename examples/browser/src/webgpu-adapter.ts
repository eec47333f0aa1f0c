/** Whether the page can offer WebGPU, and begin with it. */
export interface WebgpuOffer {
  /** The adapter is hardware: software is slower than WebAssembly. */
  readonly isFast: boolean;
  /** Why there is no WebGPU; absent where there is. */
  readonly obstacle?: string;
}

export async function findWebgpu(): Promise<WebgpuOffer> {
  if (!("gpu" in navigator)) {
    const obstacle = isSecureContext
      ? "This browser has no WebGPU."
      : "WebGPU needs a page from https or from this machine.";
    return { isFast: false, obstacle };
  }
  try {
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) return { isFast: false, obstacle: "WebGPU has no adapter here." };
    return { isFast: !adapter.info.isFallbackAdapter };
  } catch (error) {
    return { isFast: false, obstacle: `WebGPU gives no adapter: ${String(error)}` };
  }
}
