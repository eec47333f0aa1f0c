import { CoppiceError } from "@coppice/core";

/** Element types of graph values that Coppice uses. */
export const elementTypes = ["float32", "float16", "bfloat16", "int32", "int64", "uint8", "bool"] as const;
export type ElementType = (typeof elementTypes)[number];

/** Bytes of one value of each type. */
export const elementBytes: Readonly<Record<ElementType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  int32: 4,
  int64: 8,
  uint8: 1,
  bool: 1,
};

/** A size, or the name of a size that is known only when the graph runs; equal names mean equal sizes. */
export type Dim = number | string;

/** Name of a value of a graph: an input, an initializer or the output of a node. `""` stands for an input left out. */
export type Value = string;

/**
 * An attribute of a node. A plain number is an integer (INT), an array is INTS; floats are marked, because a
 * whole number would otherwise leave the type open. The graph of a branch has no inputs: it sees what is defined around its node.
 */
export type Attribute =
  | number
  | readonly number[]
  | string
  | { readonly float: number }
  | { readonly graph: Graph };

export interface GraphValue {
  readonly name: Value;
  readonly type: ElementType;
  readonly shape: readonly Dim[];
}

export interface GraphNode {
  readonly operator: string;
  /** `""` is the ONNX standard's own. */
  readonly domain: string;
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly attributes: Readonly<Record<string, Attribute>>;
}

/** Where values lie outside of the file that holds the graph. */
export interface ExternalPlace {
  /** Name of a file beside it. */
  readonly file: string;
  readonly offset: number;
  readonly length: number;
}

/** Values inside the file, or `external`. Little-endian, row-major. */
export type GraphInitializer = {
  readonly name: Value;
  readonly type: ElementType;
  readonly shape: readonly number[];
} & ({ readonly bytes: Uint8Array } | { readonly external: ExternalPlace });

/** A graph as plain data; nodes are in an order in which they can run. */
export interface Graph {
  readonly name: string;
  readonly inputs: readonly GraphValue[];
  readonly outputs: readonly GraphValue[];
  readonly initializers: readonly GraphInitializer[];
  readonly nodes: readonly GraphNode[];
}

export interface NodeOptions {
  readonly attributes?: Readonly<Record<string, Attribute>>;
  /** `com.microsoft` for the contributed operators of ONNX Runtime. */
  readonly domain?: string;
}

/** What a branch gives, float32. */
export interface BranchOutput {
  readonly value: Value;
  readonly shape: readonly Dim[];
}

/** Builds a graph node by node. Every name must exist before it is used, so the result is sorted and closed. */
export class GraphBuilder {
  readonly #name: string;
  readonly #inputs: GraphValue[] = [];
  readonly #outputs: GraphValue[] = [];
  readonly #initializers = new Map<string, GraphInitializer>();
  /** Those of the graph, or of the branch that is being built. */
  #nodes: GraphNode[] = [];
  readonly #known = new Set<string>();
  /** Values of branches that are built, which nothing outside can use. */
  readonly #inner = new Set<string>();
  /** Constants of the branch that is being built. */
  #own: Map<string, GraphInitializer> | undefined;
  #next = 0;

  constructor(name: string) {
    this.#name = name;
  }

  input(name: string, shape: readonly Dim[], type: ElementType = "float32"): Value {
    this.#define(name);
    this.#inputs.push({ name, type, shape });
    return name;
  }

  /** Makes `value` an output of the graph under its own name. */
  output(value: Value, shape: readonly Dim[], type: ElementType = "float32"): void {
    this.#require(value, "graph output");
    this.#outputs.push({ name: value, type, shape });
  }

  /** A float32 weight or constant inside the graph. */
  weight(name: string, shape: readonly number[], values: Float32Array): Value {
    this.#define(name);
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    this.#initializers.set(name, { name, type: "float32", shape, bytes });
    return name;
  }

  /** A weight that lies outside of the file. */
  stored(name: string, shape: readonly number[], type: ElementType, external: ExternalPlace): Value {
    this.#define(name);
    this.#initializers.set(name, { name, type, shape, external });
    return name;
  }

  /** An int64 constant; equal constants are stored once. `shape` defaults to one dimension. */
  int64(values: readonly number[], shape: readonly number[] = [values.length]): Value {
    return this.#constant("int64", shape, new BigInt64Array(values.map(BigInt)), values);
  }

  /** A float32 constant; equal constants are stored once. `shape` defaults to a scalar. */
  float32(value: number, shape: readonly number[] = []): Value {
    return this.#constant("float32", shape, new Float32Array([value]), [value]);
  }

  /** Whether there is a value of this name. */
  has(name: string): boolean {
    return this.#known.has(name);
  }

  /** A name that no value has, for an output of a node. */
  name(word: string): Value {
    return `${word}_${this.#next++}`;
  }

  /** Adds a node with one output and returns it, under `name` or a name of its own. */
  node(
    operator: string,
    inputs: readonly Value[],
    options: NodeOptions = {},
    name = this.name(operator),
  ): Value {
    this.nodes(operator, inputs, [name], options);
    return name;
  }

  /** Adds a node with named outputs; `""` leaves one out. */
  nodes(
    operator: string,
    inputs: readonly Value[],
    outputs: readonly Value[],
    options: NodeOptions = {},
  ): void {
    for (const value of inputs) if (value !== "") this.#require(value, operator);
    for (const value of outputs) if (value !== "") this.#define(value);
    const { attributes = {}, domain = "" } = options;
    this.#nodes.push({ operator, domain, inputs: [...inputs], outputs: [...outputs], attributes });
  }

  /**
   * Adds an `If` with one output per name: what the first branch gives where `condition` (bool []) is true, and else what the second one
   * gives. Only that branch runs. A branch adds its nodes to this builder. Inputs and weights that it adds are those of the whole graph;
   * constants are its own, because ONNX Runtime hands over whatever comes from outside in every run.
   */
  choose(
    condition: Value,
    names: readonly Value[],
    yes: () => readonly BranchOutput[],
    no: () => readonly BranchOutput[],
  ): void {
    const branches = [this.#branch("then", yes), this.#branch("else", no)] as const;
    const [then_branch, else_branch] = branches;
    for (const { outputs } of branches) {
      if (outputs.length === names.length) continue;
      const found = `${outputs.length} values of a branch`;
      throw new CoppiceError(
        "COPPICE_INTERNAL",
        `${found} of graph ${this.#name} have ${names.length} names`,
      );
    }
    const attributes = { then_branch: { graph: then_branch }, else_branch: { graph: else_branch } };
    this.nodes("If", [condition], names, { attributes });
  }

  #branch(name: string, build: () => readonly BranchOutput[]): Graph {
    const around = [this.#nodes, this.#own] as const;
    const nodes: GraphNode[] = [];
    const constants = new Map<string, GraphInitializer>();
    [this.#nodes, this.#own] = [nodes, constants];
    try {
      const outputs = build().map(({ value, shape }): GraphValue => {
        this.#require(value, `${name} branch`);
        return { name: value, type: "float32", shape };
      });
      return { name: this.name(name), inputs: [], outputs, initializers: [...constants.values()], nodes };
    } finally {
      [this.#nodes, this.#own] = around;
      const initializers = Array.from(constants.values(), ({ name }) => name);
      for (const value of [...nodes.flatMap(({ outputs }) => outputs), ...initializers]) {
        this.#known.delete(value);
        this.#inner.add(value);
      }
    }
  }

  build(): Graph {
    return {
      name: this.#name,
      inputs: [...this.#inputs],
      outputs: [...this.#outputs],
      initializers: [...this.#initializers.values()],
      nodes: [...this.#nodes],
    };
  }

  #constant(
    type: ElementType,
    shape: readonly number[],
    data: BigInt64Array | Float32Array,
    values: readonly number[],
  ): Value {
    // `|` cannot occur in a name that a caller chooses for an input without being odd; it keeps constants apart.
    const key = `${type}|${shape.join("x")}|${values.join(",")}`;
    const constants = this.#own ?? this.#initializers;
    const known = constants.get(key);
    if (known) return known.name;
    const name = this.#own ? this.name(key) : key;
    this.#define(name);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    constants.set(key, { name, type, shape, bytes });
    return name;
  }

  #define(name: string): void {
    if (name === "" || this.#known.has(name) || this.#inner.has(name)) {
      throw new CoppiceError("COPPICE_INTERNAL", `graph ${this.#name} defines the value "${name}" twice`);
    }
    this.#known.add(name);
  }

  #require(name: string, user: string): void {
    if (this.#known.has(name)) return;
    throw new CoppiceError(
      "COPPICE_INTERNAL",
      `${user} of graph ${this.#name} uses the unknown value "${name}"`,
    );
  }
}
