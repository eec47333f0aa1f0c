export {
  type FixtureName,
  fixtureNames,
  fixturePath,
  fixtures,
  loadFixture,
  loadFixtureFolder,
} from "./node/fixtures.js";
