import { bytesContent, type Content, type OutputFile, outputFile } from "@coppice/checkpoint";
import { CoppiceError } from "@coppice/core";
import type { ExternalPlace } from "@coppice/onnx";

/** Places begin at multiples of this: vector instructions read whole lines of a cache. */
const alignment = 64;

/**
 * The files beside a graph that hold its weights, each below a limit, named as transformers.js names them:
 * `<graph>_data`, `<graph>_data_1` and so on.
 */
export class ExternalFiles {
  readonly #graphFile: string;
  readonly #mostBytes: number;
  readonly #files: { contents: Content[]; bytes: number }[] = [];
  readonly #places = new Map<string, ExternalPlace>();

  constructor(graphFile: string, mostBytes: number) {
    this.#graphFile = graphFile;
    this.#mostBytes = mostBytes;
  }

  /**
   * A place for a tensor that lies one content after the other; the same place for the same name.
   * @throws COPPICE_EXPORT_UNSUPPORTED for one that is larger than a file may be
   */
  place(name: string, contents: readonly Content[]): ExternalPlace {
    const known = this.#places.get(name);
    if (known) return known;
    const length = contents.reduce((sum, { bytes }) => sum + bytes, 0);
    if (length > this.#mostBytes) {
      throw new CoppiceError(
        "COPPICE_EXPORT_UNSUPPORTED",
        `${name} has ${length} bytes, a file beside the graph may have ${this.#mostBytes}`,
        { hint: "quantize this tensor", details: { tensor: name, bytes: length, limit: this.#mostBytes } },
      );
    }
    let file = this.#files.at(-1);
    let offset = Math.ceil((file?.bytes ?? 0) / alignment) * alignment;
    if (!file || offset + length > this.#mostBytes) {
      file = { contents: [], bytes: 0 };
      this.#files.push(file);
      offset = 0;
    }
    if (offset > file.bytes) file.contents.push(bytesContent(new Uint8Array(offset - file.bytes)));
    file.contents.push(...contents);
    file.bytes = offset + length;
    const place = { file: this.#name(this.#files.length - 1), offset, length };
    this.#places.set(name, place);
    return place;
  }

  /** @param folder before their names, such as `onnx/` */
  outputFiles(folder: string): OutputFile[] {
    return this.#files.map(({ contents }, i) => outputFile(`${folder}${this.#name(i)}`, contents));
  }

  #name(index: number): string {
    return `${this.#graphFile}_data${index === 0 ? "" : `_${index}`}`;
  }
}
