import { isCoppiceError } from "@coppice/core";
import {
  type Attribute,
  decodeLimits,
  decodeModel,
  denseGraph,
  elementBytes,
  elementTypes,
  encodeModel,
  type Graph,
  GraphBuilder,
  type GraphInitializer,
  type MlpShape,
  moeGraph,
} from "@coppice/onnx";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

const name = fc.stringMatching(/^[a-z][a-zA-Z0-9_.]{0,11}$/);
const size = fc.integer({ min: 0, max: 5 });
const type = fc.constantFrom(...elementTypes);
const attribute = fc.oneof(
  fc.integer(),
  fc.array(fc.integer(), { maxLength: 4 }),
  fc.string(),
  fc.record({ float: fc.float({ noNaN: true }) }),
) as fc.Arbitrary<Attribute>;
const value = fc.record({ name, type, shape: fc.array(fc.oneof(size, name), { maxLength: 4 }) });
const graphs = fc.letrec<{ graph: Graph; attribute: Attribute }>((tie) => ({
  attribute: fc.oneof({ depthSize: "small" }, attribute, fc.record({ graph: tie("graph") })),
  graph: graphOf(tie("attribute")),
}));
const graph = graphs.graph;

function graphOf(attribute: fc.Arbitrary<Attribute>): fc.Arbitrary<Graph> {
  return fc.record({
    name,
    inputs: fc.array(value, { maxLength: 3 }),
    outputs: fc.array(value, { maxLength: 3 }),
    initializers: fc.array(
      fc
        .tuple(fc.record({ name, type, shape: fc.array(size, { maxLength: 3 }) }), fc.option(fc.nat()))
        .map(([tensor, offset]): GraphInitializer => {
          const length = tensor.shape.reduce((a, b) => a * b, elementBytes[tensor.type]);
          return offset === null
            ? { ...tensor, bytes: new Uint8Array(length).fill(7) }
            : { ...tensor, external: { file: "model.onnx_data", offset, length } };
        }),
      { maxLength: 3 },
    ),
    nodes: fc.array(
      fc.record({
        operator: name,
        domain: fc.constantFrom("", "com.microsoft"),
        inputs: fc.array(fc.oneof(name, fc.constant("")), { maxLength: 3 }),
        outputs: fc.array(name, { maxLength: 3 }),
        attributes: fc.dictionary(name, attribute, { maxKeys: 3, noNullPrototype: true }),
      }),
      { maxLength: 4 },
    ),
  });
}

const expert: MlpShape = { hidden: 4, width: 6, activation: { kind: "silu" }, biases: ["upBias"] };

describe("model files", () => {
  test("decoding gives back what was encoded", () => {
    fc.assert(
      fc.property(graph, (original) => {
        expect(decodeModel(encodeModel(original))).toEqual(original);
      }),
    );
  });

  test("the lowered graphs survive the file", () => {
    const moe = moeGraph(expert, { slots: 3, topK: 2, expertOutputs: true });
    for (const lowered of [denseGraph(expert), moe]) {
      expect(decodeModel(encodeModel(lowered))).toEqual(lowered);
    }
  });

  test("damaged files are refused with a code, whatever the damage", () => {
    const whole = encodeModel(moeGraph(expert, { slots: 2, topK: 1, expertOutputs: false }));
    const damage = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 8 });
    fc.assert(
      fc.property(damage, fc.nat(whole.length), (changes, length) => {
        const bytes = whole.slice(0, Math.max(1, length));
        for (const [at, byte] of changes) if (at < bytes.length) bytes[at] = byte;
        try {
          decodeModel(bytes);
        } catch (error) {
          expect(isCoppiceError(error), String(error)).toBe(true);
        }
      }),
      { numRuns: 500 },
    );
  });

  test("bytes of no model, too many bytes and false tensor sizes are refused", () => {
    const code = (bytes: Uint8Array) => {
      try {
        decodeModel(bytes);
      } catch (error) {
        return isCoppiceError(error) ? error.code : String(error);
      }
      return "none";
    };
    expect(code(new Uint8Array([255, 255, 255]))).toBe("COPPICE_FORMAT_HEADER");
    expect(code(new Uint8Array(0))).toBe("COPPICE_FORMAT_HEADER");
    expect(code(new Uint8Array(decodeLimits.bytes + 1))).toBe("COPPICE_FORMAT_LIMIT");
    const lying: Graph = {
      name: "lying",
      inputs: [],
      outputs: [],
      nodes: [],
      initializers: [{ name: "w", type: "float32", shape: [2, 3], bytes: new Uint8Array(20) }],
    };
    expect(code(encodeModel(lying))).toBe("COPPICE_FORMAT_SHAPE");
    const deep: Graph = {
      ...lying,
      initializers: [],
      inputs: [{ name: "x", type: "bool", shape: Array(9).fill(1) }],
    };
    expect(code(encodeModel(deep))).toBe("COPPICE_FORMAT_LIMIT");
  });
});

describe("the graph builder", () => {
  test("refuses names that do not exist or exist already", () => {
    const builder = new GraphBuilder("test");
    builder.input("x", [1]);
    expect(() => builder.input("x", [1])).toThrow('defines the value "x" twice');
    expect(() => builder.node("Relu", ["y"])).toThrow('Relu of graph test uses the unknown value "y"');
    expect(() => builder.output("y", [1])).toThrow('the unknown value "y"');
  });

  test("adds branches that see what is around them, and whose values nothing outside sees", () => {
    const builder = new GraphBuilder("test");
    builder.input("x", ["n"]);
    builder.input("which", [], "bool");
    const shape = ["n"];
    let inner = "";
    const twice = () => {
      inner = builder.node("Mul", ["x", builder.float32(2)]);
      return [{ value: inner, shape }];
    };
    const negative = () => [{ value: builder.node("Neg", ["x"]), shape }];
    builder.choose("which", ["y"], twice, negative);
    builder.output("y", shape);
    expect(() => builder.node("Neg", [inner])).toThrow("the unknown value");
    expect(() => builder.node("Neg", ["x"], {}, inner)).toThrow("twice");
    expect(() => builder.choose("which", ["a", "b"], twice, negative)).toThrow("have 2 names");
    const { nodes, initializers } = builder.build();
    expect(nodes.map(({ operator }) => operator)).toEqual(["If"]);
    // The branch has its constants.
    expect(initializers).toEqual([]);
    expect(nodes[0]?.attributes["then_branch"]).toMatchObject({
      graph: {
        outputs: [{ name: expect.any(String), type: "float32", shape }],
        initializers: [{ shape: [] }],
      },
    });
  });

  test("stores equal constants once", () => {
    const builder = new GraphBuilder("test");
    expect(builder.int64([1, 2])).toBe(builder.int64([1, 2]));
    expect(builder.int64([1], [])).not.toBe(builder.int64([1]));
    expect(builder.float32(0)).not.toBe(builder.int64([0], []));
    expect(builder.build().initializers).toHaveLength(5);
  });
});
