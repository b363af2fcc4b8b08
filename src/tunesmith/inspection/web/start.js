// Puts the page together, and chooses the first token.

showTokens();
showNext();
showSaid();
showLens();
showAttention();
showCounts();
showMaps();
showChanges();
choosePlace(chosen.place);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { showHeads(); choosePlace(chosen.place); });
