import { ask } from "./api.js";

const form = document.getElementById("enter");
const problem = document.getElementById("problem");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const isNew = form.dataset.isNew === "yes";
  const content = { name: form.elements.name.value, password: form.elements.password.value };
  if (isNew) content.invitation = location.hash.slice(1);
  problem.textContent = "";
  form.querySelector("button").disabled = true;
  try {
    const { go_to } = await ask("POST", isNew ? "api/join" : "api/sign-in", content);
    location.assign(go_to);
  } catch (error) {
    problem.textContent = error.message;
    form.querySelector("button").disabled = false;
  }
});
