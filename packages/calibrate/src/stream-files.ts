import { CoppiceError, type LayerRange } from "@coppice/core";
import { decodeFloats, encodeFloats } from "./float-tensors.js";
import { recordName } from "./stream-record.js";
import type { WorkStore } from "./work-store.js";

/** Names of the files of a layer-streamed pass, and nothing else that may be in the store. */
const hiddenName = /^hidden-(\d{5})-\d{6}\.f32$/;
const layersName = /^layers-(\d{5})-(\d{5})\.safetensors$/;

/** Hidden states between layers, one file per batch, and the statistics of finished layers. */
export class StreamFiles {
  readonly #store: WorkStore;

  constructor(store: WorkStore) {
    this.#store = store;
  }

  /** @param hidden [tokens of the batch, hidden], input of `layer` */
  writeHidden(layer: number, batch: number, hidden: Float32Array): Promise<void> {
    return this.#store.write(nameOfHidden(layer, batch), encodeFloats("F32", hidden, [hidden.length]).bytes);
  }

  /** @throws COPPICE_IO_READ, also when the file has another size */
  async readHidden(layer: number, batch: number, values: number): Promise<Float32Array> {
    const name = nameOfHidden(layer, batch);
    const bytes = await this.#store.read(name);
    if (bytes.length === values * Float32Array.BYTES_PER_ELEMENT) {
      return decodeFloats("F32", { dtype: "F32", shape: [values], bytes });
    }
    throw new CoppiceError(
      "COPPICE_IO_READ",
      `${name} in ${this.#store.label} has ${bytes.length} bytes, expected ${4 * values}`,
      { hint: `remove ${this.#store.label} and begin anew` },
    );
  }

  writeLayers({ from, to }: LayerRange, bytes: Uint8Array): Promise<void> {
    return this.#store.write(`layers-${digits(from)}-${digits(to)}.safetensors`, bytes);
  }

  /** Files of `writeLayers` in layer order. */
  async *readLayers(): AsyncGenerator<{ readonly name: string; readonly bytes: Uint8Array }> {
    const names = (await this.#store.list()).filter((name) => layersName.test(name)).sort();
    for (const name of names) yield { name, bytes: await this.#store.read(name) };
  }

  /** Removes what a pass does not need that has done all layers before `next`. */
  async removeAllBut(next: number): Promise<void> {
    await this.#remove((name) => {
      const hidden = hiddenName.exec(name)?.[1];
      const to = layersName.exec(name)?.[2];
      return (hidden !== undefined && Number(hidden) !== next) || (to !== undefined && Number(to) > next);
    });
  }

  /** The record goes last: without it the others are of no use, but not the other way round. */
  async removeAll(): Promise<void> {
    await this.#remove((name) => hiddenName.test(name) || layersName.test(name));
    await this.#store.remove(recordName);
  }

  async #remove(unwanted: (name: string) => boolean): Promise<void> {
    for (const name of await this.#store.list()) if (unwanted(name)) await this.#store.remove(name);
  }
}

function nameOfHidden(layer: number, batch: number): string {
  return `hidden-${digits(layer)}-${String(batch).padStart(6, "0")}.f32`;
}

function digits(layer: number): string {
  return String(layer).padStart(5, "0");
}
