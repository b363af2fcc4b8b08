// Text of models and people, shown as text: nothing in it is ever markup, a link or an image.

const LONG_TEXT = 1200; // characters from which on an answer is folded
const MANY_LINES = 18;

export function make(tag, content = "", names = "") {
  const node = document.createElement(tag);
  if (content) node.textContent = content;
  if (names) node.className = names;
  return node;
}

export function button(content, title, onClick, names = "") {
  const node = make("button", content, names);
  node.type = "button";
  if (title) {
    node.title = title;
    node.setAttribute("aria-label", title);
  }
  node.addEventListener("click", onClick);
  return node;
}

// Paragraphs, each written from the side its letters ask for, and code between fences in its own type.
export function showText(node, text) {
  node.replaceChildren();
  text.split(/^```[^\n]*$/m).forEach((part, index) => {
    const isCode = index % 2 === 1;
    const content = part.replace(/^\n+|\n+$/g, "");
    if (!content.trim()) return;
    if (isCode) {
      const box = make("pre");
      box.tabIndex = 0;
      box.append(make("code", content));
      node.append(box);
    } else {
      for (const paragraph of content.split(/\n{2,}/)) {
        const shown = make("p", paragraph);
        shown.dir = "auto";
        node.append(shown);
      }
    }
  });
}

export function isLong(text) {
  return text.length > LONG_TEXT || text.split("\n").length > MANY_LINES;
}
