/** @typedef {import("@coppice/backend-webgpu").DeviceSource} DeviceSource */

/**
 * A source whose devices are changed before anyone uses them.
 * @param {DeviceSource} source
 * @param {(device: GPUDevice) => void} change
 * @returns {DeviceSource}
 */
export function withDevices(source, change) {
  return {
    name: source.name,
    async requestAdapter() {
      const adapter = await source.requestAdapter();
      if (!adapter) return null;
      const request = adapter.requestDevice.bind(adapter);
      adapter.requestDevice = async (/** @type {GPUDeviceDescriptor | undefined} */ descriptor) => {
        const device = await request(descriptor);
        change(device);
        return device;
      };
      return adapter;
    },
  };
}

/**
 * A source whose devices are seen by the test.
 * @param {DeviceSource} source
 */
export function watched(source) {
  /** @type {GPUDevice[]} */
  const devices = [];
  /** What is not destroyed yet. */
  const alive = { buffers: 0, devices: 0 };
  const own = withDevices(source, (device) => {
    const create = device.createBuffer.bind(device);
    device.createBuffer = (/** @type {GPUBufferDescriptor} */ wanted) => {
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
    const end = device.destroy.bind(device);
    let ended = false;
    alive.devices++;
    device.destroy = () => {
      if (!ended) alive.devices--;
      ended = true;
      end();
    };
    devices.push(device);
  });
  return { ...own, devices, alive };
}
