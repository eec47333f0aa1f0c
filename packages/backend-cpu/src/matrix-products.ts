import { GraphBuilder } from "@coppice/onnx";
import { loadRuntime, Sessions } from "./sessions.js";

/** Products of matrices on ONNX Runtime, some fifty times as fast as loops of JavaScript. */
export interface CpuProducts extends AsyncDisposable {
  /**
   * Aᵀ B, [p, q], from a [rows, p] and b [rows, q].
   * @throws COPPICE_BACKEND_FAILED, COPPICE_BACKEND_DISPOSED
   */
  transposed(request: {
    readonly a: Float32Array;
    readonly b: Float32Array;
    readonly rows: number;
    readonly p: number;
    readonly q: number;
  }): Promise<Float32Array>;
}

/**
 * For whatever works on activations outside of a model, such as least-squares fits.
 * @param threads of ONNX Runtime. Default 1
 * @throws COPPICE_BACKEND_UNAVAILABLE
 */
export async function openProducts({ threads = 1 }: { threads?: number } = {}): Promise<CpuProducts> {
  const runtime = await loadRuntime();
  const sessions = new Sessions(runtime, threads);
  return {
    async transposed({ a, b, rows, p, q }) {
      const { Tensor } = runtime;
      const feeds = { a: new Tensor("float32", a, [rows, p]), b: new Tensor("float32", b, [rows, q]) };
      const { product } = await sessions.run("product", productGraph, feeds);
      return product?.data as Float32Array;
    },
    [Symbol.asyncDispose]: () => sessions.dispose(),
  };
}

function productGraph() {
  const graph = new GraphBuilder("product");
  const a = graph.input("a", ["rows", "p"]);
  const b = graph.input("b", ["rows", "q"]);
  graph.output(graph.node("Gemm", [a, b], { attributes: { transA: 1 } }, "product"), ["p", "q"]);
  return graph.build();
}
