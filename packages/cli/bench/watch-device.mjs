/** Counts what a device is told to do, and times its kernels one by one when asked to. */
export function watchDevice() {
  const names = ["dispatch", "pass", "submit", "write", "written", "map", "read", "mapMs", "buffer", "group"];
  const counts = Object.fromEntries(names.map((name) => [name, 0]));
  const sums = new Map();
  const open = [];
  let timing = false;
  let device;
  const wrapPass = (encoder, queries) => {
    let pipeline;
    let group;
    return {
      setPipeline: (own) => {
        pipeline = own;
      },
      setBindGroup: (...own) => {
        group = own.map((one) => (ArrayBuffer.isView(one) ? one.slice() : one));
      },
      dispatchWorkgroups(...size) {
        if (queries.names.length === 2048) return this.plain(size);
        const at = 2 * queries.names.length;
        queries.names.push(pipeline.label);
        const pass = encoder.beginComputePass({
          timestampWrites: {
            querySet: queries.set,
            beginningOfPassWriteIndex: at,
            endOfPassWriteIndex: at + 1,
          },
        });
        pass.setPipeline(pipeline);
        pass.setBindGroup(...group);
        pass.dispatchWorkgroups(...size);
        pass.end();
      },
      plain(size) {
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(...group);
        pass.dispatchWorkgroups(...size);
        pass.end();
      },
      end() {},
    };
  };
  const timedEncoder = (encoder) => {
    const queries = { set: device.createQuerySet({ type: "timestamp", count: 4096 }), names: [] };
    return {
      beginComputePass: () => wrapPass(encoder, queries),
      copyBufferToBuffer: (...rest) => encoder.copyBufferToBuffer(...rest),
      resolveQuerySet: (...rest) => encoder.resolveQuerySet(...rest),
      finish() {
        const size = 16 * Math.max(1, queries.names.length);
        const resolved = device.createBuffer({ size, usage: 512 | 4 });
        const target = device.createBuffer({ size, usage: 1 | 8 });
        if (queries.names.length > 0) {
          encoder.resolveQuerySet(queries.set, 0, 2 * queries.names.length, resolved, 0);
          encoder.copyBufferToBuffer(resolved, 0, target, 0, size);
        }
        open.push({ ...queries, resolved, target });
        return encoder.finish();
      },
    };
  };
  const collect = async () => {
    for (const { names, set, resolved, target } of open.splice(0)) {
      await target.mapAsync(1);
      const ticks = new BigUint64Array(target.getMappedRange());
      for (const [i, name] of names.entries()) {
        const sum = sums.get(name) ?? { name, ms: 0, count: 0 };
        sum.ms += Math.max(0, Number(ticks[2 * i + 1] - ticks[2 * i])) / 1e6;
        sum.count++;
        sums.set(name, sum);
      }
      for (const one of [target, resolved, set]) one.destroy();
    }
  };
  const onPrototype = (object, name, around) => {
    const owner = Object.getPrototypeOf(object);
    const plain = owner[name];
    owner[name] = function (...rest) {
      return around.call(this, plain, rest);
    };
  };
  return {
    counts,
    reset() {
      for (const name of names) counts[name] = 0;
    },
    time() {
      timing = device.features.has("timestamp-query");
    },
    async times() {
      await collect();
      timing = false;
      return [...sums.values()].sort((a, b) => b.ms - a.ms);
    },
    adapter: (adapter) => ({
      info: adapter.info,
      features: adapter.features,
      limits: adapter.limits,
      async requestDevice(wanted) {
        device = await adapter.requestDevice(wanted);
        onPrototype(device.queue, "submit", function (plain, rest) {
          counts.submit++;
          return plain.apply(this, rest);
        });
        onPrototype(device.queue, "writeBuffer", function (plain, rest) {
          counts.write++;
          counts.written += rest[4] ?? rest[2].byteLength;
          return plain.apply(this, rest);
        });
        onPrototype(device, "createBuffer", function (plain, rest) {
          counts.buffer++;
          return plain.apply(this, rest);
        });
        onPrototype(device, "createBindGroup", function (plain, rest) {
          counts.group++;
          return plain.apply(this, rest);
        });
        onPrototype(device, "createCommandEncoder", function (plain, rest) {
          const encoder = plain.apply(this, rest);
          return timing ? timedEncoder(encoder) : encoder;
        });
        const buffer = device.createBuffer({ size: 16, usage: 8 });
        onPrototype(buffer, "mapAsync", async function (plain, rest) {
          counts.map++;
          counts.read += rest[2] ?? this.size;
          const begin = performance.now();
          await plain.apply(this, rest);
          counts.mapMs += performance.now() - begin;
        });
        buffer.destroy();
        const encoder = device.createCommandEncoder();
        onPrototype(encoder, "beginComputePass", function (plain, rest) {
          counts.pass++;
          return plain.apply(this, rest);
        });
        const pass = encoder.beginComputePass();
        onPrototype(pass, "dispatchWorkgroups", function (plain, rest) {
          counts.dispatch++;
          return plain.apply(this, rest);
        });
        pass.end();
        encoder.finish();
        return device;
      },
    }),
  };
}
